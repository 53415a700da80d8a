//! Many topics, selected by a pattern, received as one.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bus::{Bus, escape};
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::futures::{MessageStream, Receive};
use crate::message::Payload;
use crate::pubsub::{Frame, Start, Subscriber};
use crate::reactor::{Ready, Sleep};
use crate::shm::lane::Found;
use crate::shm::park::{Signal, Ticket};
use crate::wait::Waitable;
use crate::waitset::WaitSet;

/// Receives from all topics whose name matches a pattern, or one of several. Made by [`Bus::select`].
///
/// It subscribes to what is there, from where it was said, and by itself to what comes later, from the oldest message that is held
/// then: what is sent to a new topic, as soon as there is one, is received. Topics that carry another type, or are no
/// topics to subscribe to, are passed over; those that are removed are left. There is an order among the messages of one
/// publisher, none between topics, and no topic hides another.
///
/// ```
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// let mut orders = bus.select("orders/*")?;
/// let mut publisher = bus.topic("orders/eu")?.publisher()?; // made after that
/// publisher.send(b"7 pears")?;
/// let order = orders.recv()?;
/// assert_eq!((order.topic(), &*order), ("orders/eu", &b"7 pears"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct Selection<T: ?Sized = [u8]> {
    topics: Topics<T>,
    set: WaitSet,
    sleep: Sleep,
}

/// What is selected.
struct Topics<T: ?Sized> {
    bus: Bus,
    names: Names,
    /// Publishers do not wait.
    is_lossy: bool,
    /// The list of topics when it was last looked at.
    seen: u64,
    joined: Vec<Joined<T>>,
    /// The topic that is received from now.
    at: usize,
    /// Messages from it; every [`TURN`]th, the others are looked at first.
    turn: u32,
}

struct Joined<T: ?Sized> {
    name: Arc<str>,
    subscriber: Subscriber<T>,
}

/// Messages taken from one topic before the others are looked at.
const TURN: u32 = 64;

impl<T: ?Sized> fmt::Debug for Selection<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Selection")
            .field("names", &self.topics.names.text)
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized + Payload> Topics<T> {
    /// Joins the topics that match and are not joined, and leaves those that are removed. What goes wrong with one of them is
    /// reported when all are looked at, once.
    fn refresh(&mut self, start: Start) -> Result<()> {
        // Read before listing, so that what comes later changes it once more.
        self.seen = self.bus.topics_version();
        let mut outcome = Ok(());
        let mut names = self.bus.topic_dirs()?;
        names.retain(|(_, name)| self.names.match_any(name));
        self.joined.retain(|joined| {
            let is_listed = names.iter().any(|(_, name)| **name == *joined.name);
            is_listed && joined.subscriber.topic().files.exists().unwrap_or(true)
        });
        for (_, name) in names {
            if self.joined.iter().any(|joined| *joined.name == *name) {
                continue;
            }
            match self.join(&name, start) {
                Ok(joined) => self.joined.push(joined),
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Mismatch) => {}
                // An observer sees messages alone.
                Err(e) if self.bus.is_observed() && e.kind() == ErrorKind::Unsupported => {}
                Err(e) => outcome = outcome.and(Err(e)),
            }
        }
        self.at = 0;
        outcome
    }

    fn join(&self, name: &str, start: Start) -> Result<Joined<T>> {
        let topic = self.bus.topic_builder(name).create(false).open_as::<T>()?;
        let subscriber = match self.is_lossy {
            true => topic.lossy_subscriber(start)?,
            false => topic.subscriber_from(start)?,
        };
        Ok(Joined {
            name: name.into(),
            subscriber,
        })
    }

    /// Joins and leaves topics, if the list of them has changed.
    fn keep_up(&mut self) -> Result<()> {
        self.bus.check_fork()?;
        if self.seen == self.bus.topics_version() {
            return Ok(());
        }
        self.refresh(Start::Oldest)
    }

    /// The next message, if it is there: of the topic that is then at `at`.
    fn find(&mut self) -> Result<Option<Found>> {
        self.keep_up()?;
        let count = self.joined.len();
        let behind = self.at + 1;
        let stays = self.turn < TURN && self.at < count;
        let here = stays.then_some(self.at);
        for at in here
            .into_iter()
            .chain(behind..count)
            .chain(0..behind.min(count))
        {
            match self.joined[at].subscriber.find() {
                Ok(None) => {}
                Ok(found) => {
                    self.turn = if stays && at == self.at {
                        self.turn + 1
                    } else {
                        0
                    };
                    self.at = at;
                    return Ok(found);
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    // It was removed since the list was looked at.
                    self.refresh(Start::Oldest)?;
                    return Ok(None);
                }
                Err(e) => {
                    // It may fail again: the others are looked at before it.
                    (self.at, self.turn) = (at, TURN);
                    return Err(e);
                }
            }
        }
        Ok(None)
    }

    /// Whether the last publisher of all that is selected has left, and all is received.
    fn has_ended(&self) -> bool {
        let mut ends = self
            .joined
            .iter()
            .filter_map(|joined| joined.subscriber.has_ended());
        ends.next()
            .is_some_and(|first| first && ends.all(|ended| ended))
    }

    /// An error if it has ended: once.
    fn check_end(&mut self) -> Result<()> {
        if !self.has_ended() {
            return Ok(());
        }
        for joined in &mut self.joined {
            joined.subscriber.take_end();
        }
        let why = "the last publisher has left, and all they sent was received";
        let on = Arc::clone(&self.names.text);
        Err(Error::new(ErrorKind::Ended, "receive from", on, why)
            .advise("receive again to wait for the next one"))
    }

    /// What was found just now.
    fn take(&mut self, found: Found) -> Result<Selected<'_, T>> {
        let Joined { name, subscriber } = &mut self.joined[self.at];
        let frame = subscriber.frame(found)?;
        Ok(Selected { topic: name, frame })
    }
}

impl<T: ?Sized + Payload> Waitable for Topics<T> {
    fn is_ready(&mut self) -> Result<bool> {
        self.keep_up()?;
        for joined in &mut self.joined {
            match joined.subscriber.has_news() {
                Ok(false) => {}
                Ok(true) => return Ok(true),
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    self.refresh(Start::Oldest)?;
                    return Ok(true);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(self.has_ended())
    }

    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        tickets.push(Ticket {
            signal: Signal::Topics(self.bus.control().clone()),
            seen: self.seen,
        });
        let mut joined = self.joined.iter_mut();
        joined.try_for_each(|joined| joined.subscriber.arm(tickets))
    }

    fn disarm(&mut self) {
        for joined in &mut self.joined {
            joined.subscriber.disarm();
        }
    }

    fn due(&self) -> Option<Instant> {
        self.bus.observed_again()
    }
}

impl<T: ?Sized + Payload> Selection<T> {
    pub(crate) fn join(bus: &Bus, patterns: &[&str], start: Start, is_lossy: bool) -> Result<Self> {
        bus.listen()?;
        let mut topics = Topics {
            bus: bus.clone(),
            names: Names::parse(patterns)?,
            is_lossy,
            seen: 0,
            joined: Vec::new(),
            at: 0,
            turn: 0,
        };
        topics.refresh(start)?;
        Ok(Self {
            topics,
            set: WaitSet::waiting(bus.wait())?,
            sleep: Sleep::default(),
        })
    }

    /// The names of the topics that it receives from now.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.topics.joined.iter().map(|joined| &*joined.name)
    }

    /// The next message, in place. Waits for it as the bus's wait strategy says.
    ///
    /// # Errors
    ///
    /// As for [`Subscriber::recv`]; `Ended` when all publishers of all that is selected have left. What keeps it from
    /// joining a topic that came later; called again, it goes on with the others.
    pub fn recv(&mut self) -> Result<Selected<'_, T>> {
        let found = loop {
            if let Some(found) = self.next(None)? {
                break found;
            }
        };
        self.topics.take(found)
    }

    /// The next message, if it is there: in place.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    pub fn try_recv(&mut self) -> Result<Option<Selected<'_, T>>> {
        match self.next_now()? {
            Some(found) => self.topics.take(found).map(Some),
            None => Ok(None),
        }
    }

    /// The next message, in place; `None` if there is none for `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<Selected<'_, T>>> {
        match self.next(Some(timeout))? {
            Some(found) => self.topics.take(found).map(Some),
            None => Ok(None),
        }
    }

    /// The next message, in place, as a future. See [`Subscriber::recv_async`].
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    pub async fn recv_async(&mut self) -> Result<Selected<'_, T>> {
        let found = loop {
            if let Some(found) = self.next_now()? {
                break found;
            }
            Ready::new(&mut self.topics, &mut self.sleep).await?;
        };
        self.topics.take(found)
    }

    /// A stream of topics' names and copies of their messages. It ends as [`Subscriber::stream`] does.
    pub fn stream(&mut self) -> MessageStream<&mut Self> {
        MessageStream::new(self)
    }

    /// The same, as the selection's owner.
    pub fn into_stream(self) -> MessageStream<Self> {
        MessageStream::new(self)
    }

    fn next_now(&mut self) -> Result<Option<Found>> {
        let found = self.topics.find()?;
        if found.is_none() {
            self.topics.check_end()?;
        }
        Ok(found)
    }

    fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Found>> {
        let mut until = None;
        loop {
            let found = self.next_now()?;
            if found.is_some() {
                return Ok(found);
            }
            // Once, at the first miss: a look may say that there is something, and then there is nothing.
            let until = *until.get_or_insert_with(|| Instant::now().checked_add(timeout?));
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if self.set.wait(&mut [&mut self.topics], left)?.is_none() {
                return Ok(None);
            }
        }
    }
}

impl<T: ?Sized + Payload> Waitable for Selection<T> {
    fn is_ready(&mut self) -> Result<bool> {
        self.topics.is_ready()
    }

    fn arm(&mut self, tickets: &mut Vec<Ticket>) -> Result<()> {
        self.topics.arm(tickets)
    }

    fn disarm(&mut self) {
        self.topics.disarm();
    }

    fn due(&self) -> Option<Instant> {
        self.topics.due()
    }
}

impl<T: ?Sized + Payload> Receive for Selection<T> {
    type Item = (Arc<str>, T::Owned);

    fn receive_now(&mut self) -> Result<Option<Self::Item>> {
        let Some(found) = self.next_now()? else {
            return Ok(None);
        };
        let name = Arc::clone(&self.topics.joined[self.topics.at].name);
        Ok(Some((name, self.topics.take(found)?.copied())))
    }
}

/// A message of a selected topic. It derefs to the payload, and is released when dropped.
#[derive(Debug)]
#[must_use]
pub struct Selected<'a, T: ?Sized = [u8]> {
    topic: &'a str,
    frame: Frame<'a, T>,
}

impl<'a, T: ?Sized> Selected<'a, T> {
    /// The name of the topic it was sent to.
    #[must_use]
    pub fn topic(&self) -> &'a str {
        self.topic
    }

    /// See [`Frame::lane`].
    #[must_use]
    pub fn lane(&self) -> u64 {
        self.frame.lane()
    }

    /// See [`Frame::sequence`].
    #[must_use]
    pub fn sequence(&self) -> u32 {
        self.frame.sequence()
    }

    /// See [`Frame::envelope`].
    #[must_use]
    pub fn envelope(&self) -> Option<Envelope> {
        self.frame.envelope()
    }

    /// The message as its topic's subscriber gives it.
    pub fn into_frame(self) -> Frame<'a, T> {
        self.frame
    }
}

impl<T: ?Sized> Deref for Selected<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.frame
    }
}

/// Which names are meant.
#[derive(Debug)]
pub(crate) struct Names {
    text: Arc<str>,
    patterns: Vec<NamePattern>,
}

impl Names {
    pub(crate) fn parse(patterns: &[&str]) -> Result<Self> {
        let parsed = patterns.iter().map(|text| NamePattern::parse(text));
        Ok(Self {
            text: patterns.join(", ").into(),
            patterns: parsed.collect::<Result<_>>()?,
        })
    }

    pub(crate) fn match_any(&self, name: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(name))
    }
}

/// A pattern of topic names, as [`Bus::select`] takes it: a `*` in place of a segment is any one segment, `**` any one or more.
///
/// ```
/// let pattern = buslane::NamePattern::parse("orders/*")?;
/// assert!(pattern.matches("orders/eu") && !pattern.matches("orders/eu/new"));
/// # Ok::<(), buslane::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Is(String),
    /// `*`
    One,
    /// `**`
    Some,
}

impl NamePattern {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// `InvalidName` if no topic can have a name that matches it, or `*` is only a part of a segment.
    pub fn parse(text: &str) -> Result<Self> {
        let segment = |segment: &str| match segment {
            "*" => Ok(Segment::One),
            "**" => Ok(Segment::Some),
            _ if segment.contains('*') => Err(Error::new(
                ErrorKind::InvalidName,
                "select",
                format!("{text:?}"),
                "'*' and '**' stand for whole segments",
            )
            .advise("use them alone between '/'")),
            // As names have them.
            _ => escape(segment).map(|_| Segment::Is(segment.to_owned())),
        };
        let segments: Result<Vec<_>> = text.split('/').map(segment).collect();
        Ok(Self {
            segments: segments?,
        })
    }

    /// Whether a topic with this name is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<&str> = name.split('/').collect();
        // Whether the pattern up to here matches the first so many segments of the name.
        let mut matches = vec![false; name.len() + 1];
        matches[0] = true;
        for segment in &self.segments {
            let mut longer = vec![false; name.len() + 1];
            for (i, name) in name.iter().enumerate() {
                longer[i + 1] = match segment {
                    Segment::Is(is) => matches[i] && is == name,
                    Segment::One => matches[i],
                    Segment::Some => matches[i] || longer[i],
                };
            }
            matches = longer;
        }
        matches[name.len()]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::NamePattern;

    /// Says the same by trying everything.
    fn naive(pattern: &[&str], name: &[&str]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (["*", rest @ ..], [_, name @ ..]) => naive(rest, name),
            (["**", rest @ ..], name) => (1..=name.len()).any(|taken| naive(rest, &name[taken..])),
            ([is, rest @ ..], [first, name @ ..]) => is == first && naive(rest, name),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_they_say(
            pattern in prop::collection::vec(prop::sample::select(vec!["a", "b", "*", "**"]), 1..7),
            name in prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..9),
        ) {
            let parsed = NamePattern::parse(&pattern.join("/")).unwrap();
            prop_assert_eq!(parsed.matches(&name.join("/")), naive(&pattern, &name));
        }
    }

    #[test]
    fn what_the_documentation_says() {
        let matches = |pattern, name| NamePattern::parse(pattern).unwrap().matches(name);
        for (pattern, yes, no) in [
            ("orders", &["orders"][..], &["orders/eu", "order"][..]),
            (
                "orders/*",
                &["orders/eu"],
                &["orders", "orders/eu/new", "fills/eu"],
            ),
            ("orders/**", &["orders/eu", "orders/eu/new"], &["orders"]),
            ("*/new", &["eu/new"], &["new", "orders/eu/new"]),
            ("**/new", &["eu/new", "orders/eu/new"], &["new", "new/eu"]),
            ("**", &["orders", "orders/eu"], &[]),
        ] {
            assert!(yes.iter().all(|name| matches(pattern, name)), "{pattern}");
            assert!(!no.iter().any(|name| matches(pattern, name)), "{pattern}");
        }
        for wrong in ["", "a//b", "a*", "a/***", "a/../b", "/a", "a/"] {
            assert!(NamePattern::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
