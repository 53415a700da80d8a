//! The lanes that a subscriber reads: one at a time, in turns.

use crate::shm::lane::Reader;

/// A lane that is read.
pub(super) struct Source {
    pub(super) id: u64,
    pub(super) reader: Reader,
    pub(super) slot: usize,
    /// Its writer had gone when the roster was last looked at.
    pub(super) closed: bool,
    /// And all it sent is received: up to here.
    pub(super) ended: Option<u64>,
    /// Where it was joined.
    pub(super) joined: u64,
}

impl Source {
    pub(super) fn new(id: u64, reader: Reader, slot: usize) -> Self {
        Self {
            id,
            joined: reader.position(),
            reader,
            slot,
            closed: false,
            ended: None,
        }
    }
}

/// All of them. The one that is read now is apart, where it is found without a look at anything else.
#[derive(Default)]
pub(super) struct Sources {
    here: Option<Source>,
    others: Vec<Source>,
    /// The one of the others that comes next.
    next: usize,
}

impl Sources {
    /// The one that is read now.
    #[inline(always)]
    pub(super) fn here(&self) -> Option<&Source> {
        self.here.as_ref()
    }

    /// The same.
    #[inline(always)]
    pub(super) fn here_mut(&mut self) -> Option<&mut Source> {
        self.here.as_mut()
    }

    /// Takes it away.
    pub(super) fn remove_here(&mut self) -> Option<Source> {
        let removed = self.here.take();
        self.here = self.others.pop();
        removed
    }

    /// Visits every source once, beginning behind the one that is read now, up to one that `visit` wants: that is then read.
    pub(super) fn search(&mut self, mut visit: impl FnMut(&mut Source) -> bool) -> bool {
        let Some(here) = &mut self.here else {
            return false;
        };
        for _ in 0..self.others.len() {
            let at = if self.next < self.others.len() {
                self.next
            } else {
                0
            };
            self.next = at + 1;
            if visit(&mut self.others[at]) {
                std::mem::swap(here, &mut self.others[at]);
                return true;
            }
        }
        visit(here)
    }

    /// One more.
    pub(super) fn push(&mut self, source: Source) {
        match self.here {
            None => self.here = Some(source),
            Some(_) => self.others.push(source),
        }
    }

    /// Keeps those that `stays` says.
    pub(super) fn retain(&mut self, stays: impl FnMut(&Source) -> bool) {
        self.others.extend(self.here.take());
        self.others.retain(stays);
        self.here = self.others.pop();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Source> {
        self.here.iter().chain(&self.others)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Source> {
        self.here.iter_mut().chain(&mut self.others)
    }
}
