//! Mappings of checked files, and typed views of them. `unsafe`, and no algorithm.
//!
//! The risk of a mapping, stated once: its bytes may change at any time (so a view only offers types in which any
//! bytes are valid and every field is an atomic), and its file may be truncated by its owner (so only files of our own user, allocated
//! to their whole size, are mapped). Whoever truncates them is our own user, and could as well use `ptrace`. Of another user's files
//! there are [copies](Mapping::copy), which are read anew where an algorithm loads.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, align_of, size_of};
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{Advice, MmapOptions, MmapRaw};
use zerocopy::FromBytes;

use super::fork::Region;

/// Whether a mapping may be written through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads only; a store would be a fault.
    Read,
    /// Loads and stores.
    Write,
}

/// A shared mapping of part of a file, or a space for such; zeros of its own in a forked child.
pub struct Mapping {
    map: ManuallyDrop<Map>,
    region: ManuallyDrop<Region>,
}

enum Map {
    File(MmapRaw),
    /// Addresses at which parts of files are mapped one after the other. Where none is, there are zeros to be read.
    Space(Space),
    /// Memory of our own, with what a part of a file was when it was read last.
    Copy(Copied),
}

/// A part of a file, from `from` on, and memory for it.
struct Copied {
    memory: MmapRaw,
    file: Arc<OwnedFd>,
    from: u64,
}

impl Copied {
    /// Reads `len` bytes at `offset` anew. `false`: they are not all there.
    fn refresh(&self, mut offset: usize, mut len: usize) -> bool {
        while len > 0 {
            // SAFETY: the mapping's `refresh` checked that the `len` bytes at `offset` are in its memory, which is mapped writable.
            // The kernel stores there as another process would into a shared mapping: views of it offer atomics alone.
            let read = unsafe {
                libc::pread(
                    self.file.as_raw_fd(),
                    self.memory.as_mut_ptr().add(offset).cast(),
                    len,
                    (self.from + offset as u64) as libc::off_t,
                )
            };
            match read {
                1.. => {
                    offset += read as usize;
                    len -= read as usize;
                }
                -1 if nix::errno::Errno::last() == nix::errno::Errno::EINTR => {}
                _ => return false,
            }
        }
        true
    }
}

/// Addresses that nothing else gets.
struct Space {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its addresses, which are tied to no thread; what lies there is accessed through views and rings, which say
// themselves why they may cross threads.
unsafe impl Send for Space {}

// SAFETY: as above; `&Space` gives an address, and no access.
unsafe impl Sync for Space {}

impl Drop for Space {
    fn drop(&mut self) {
        // SAFETY: the addresses are this space's own, and nothing that lies there is used after it: who uses it keeps the
        // `Mapping`. (It fails where there are too many mappings for one to be taken from between two others; then it stays.)
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl Map {
    fn start(&self) -> NonNull<u8> {
        match self {
            Self::File(map) | Self::Copy(Copied { memory: map, .. }) => {
                NonNull::new(map.as_mut_ptr()).expect("a mapping is never at 0")
            }
            Self::Space(space) => space.start,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::File(map) | Self::Copy(Copied { memory: map, .. }) => map.len(),
            Self::Space(space) => space.len,
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("len", &self.map.len())
            .finish_non_exhaustive()
    }
}

impl Mapping {
    /// Maps `len` bytes at `offset`, which the caller has found to lie within the file.
    pub fn new(file: impl AsFd, offset: u64, len: usize, access: Access) -> io::Result<Arc<Self>> {
        let mut options = MmapOptions::new();
        options.offset(offset).len(len);
        let fd = file.as_fd().as_raw_fd();
        let map = match access {
            Access::Read => options.map_raw_read_only(fd)?,
            Access::Write => options.map_raw(fd)?,
        };
        map.advise(Advice::DontFork)?;
        let region = Region::new(map.as_ptr().expose_provenance(), map.len());
        Ok(Arc::new(Self {
            map: ManuallyDrop::new(Map::File(map)),
            region: ManuallyDrop::new(region),
        }))
    }

    /// A space of `len` bytes, in which [`lay`](Self::lay) maps parts of files. It takes addresses, and no memory.
    pub fn space(len: usize) -> io::Result<Arc<Self>> {
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, where nothing was.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).expect("a mapping is never at 0");
        let region = Region::inherited(start.as_ptr().expose_provenance(), len);
        Ok(Arc::new(Self {
            map: ManuallyDrop::new(Map::Space(Space { start, len })),
            region: ManuallyDrop::new(region),
        }))
    }

    /// Memory of this process's own with a copy of `len` bytes at `from` of a file, in which the caller has found them to lie: for
    /// files that may be truncated, where a load from a mapping would be a SIGBUS. It is as old as the last
    /// [`refresh`](View::refresh); what is stored in it reaches nobody.
    pub fn copy(file: Arc<OwnedFd>, from: u64, len: usize) -> io::Result<Arc<Self>> {
        let copy = |memory| Map::Copy(Copied { memory, file, from });
        let mapping = Self::in_memory(len, copy)?;
        match mapping.refresh(mapping.map.start().cast(), len) {
            true => Ok(mapping),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Memory of this process's own, zeroed, for what others would be told by shared memory.
    pub fn private(len: usize) -> io::Result<Arc<Self>> {
        Self::in_memory(len, Map::File)
    }

    fn in_memory(len: usize, map: impl FnOnce(MmapRaw) -> Map) -> io::Result<Arc<Self>> {
        let memory = MmapRaw::from(MmapOptions::new().len(len).map_anon()?);
        let region = Region::inherited(memory.as_ptr().expose_provenance(), len);
        Ok(Arc::new(Self {
            map: ManuallyDrop::new(map(memory)),
            region: ManuallyDrop::new(region),
        }))
    }

    /// Has `len` bytes at `at` of a copy read anew, if this is one. `false`: they are not all there any more.
    fn refresh(&self, at: NonNull<()>, len: usize) -> bool {
        match &*self.map {
            Map::Copy(copy) => {
                let offset = at.addr().get() - self.map.start().addr().get();
                self.at(offset, len, 1);
                copy.refresh(offset, len)
            }
            Map::File(_) | Map::Space(_) => true,
        }
    }

    /// Maps `len` bytes at `from` of a file, in which the caller has found them to lie, at `offset` of a space.
    pub fn lay(
        &self,
        offset: usize,
        file: impl AsFd,
        from: u64,
        len: usize,
        access: Access,
    ) -> io::Result<()> {
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        };
        let fd = file.as_fd().as_raw_fd();
        self.replace(offset, len, protection, libc::MAP_SHARED, fd, from)
    }

    /// Has zeros again at `offset` of a space.
    pub fn lift(&self, offset: usize, len: usize) -> io::Result<()> {
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        self.replace(offset, len, libc::PROT_READ, kind, -1, 0)
    }

    fn replace(
        &self,
        offset: usize,
        len: usize,
        protection: libc::c_int,
        kind: libc::c_int,
        fd: libc::c_int,
        from: u64,
    ) -> io::Result<()> {
        assert!(
            matches!(*self.map, Map::Space(_)),
            "only in a space one mapping takes the place of another"
        );
        if !self.region.is_ours() {
            // What is at these addresses in a forked child may be somebody else's by now.
            return Err(io::ErrorKind::Unsupported.into());
        }
        let at = self.at(offset, len, 4096);
        // SAFETY: `at` checked that the addresses are this space's own. There is no moment at which nothing is there. Who
        // has a reference to what lies there is the lane's protocol: nothing is laid over a file, or lifted, before all
        // in this process are done with it; until then the bytes are as they were.
        let got = unsafe {
            libc::mmap(
                at.as_ptr().cast(),
                len,
                protection,
                kind | libc::MAP_FIXED,
                fd,
                from as libc::off_t,
            )
        };
        match got == libc::MAP_FAILED {
            true => Err(io::Error::last_os_error()),
            false => Ok(()),
        }
    }

    /// Has the pages in reach before they are used, many at a time: a page fault takes longer than a message. On a tmpfs
    /// that goes for writing, too.
    pub fn touch(&self) {
        // Before Linux 5.14, or without memory for the tables, they come one by one.
        if let Map::File(map) = &*self.map {
            let _ = map.advise(Advice::PopulateRead);
        }
    }

    /// Has `len` bytes at `offset` of a space in reach: to be written, or to be read.
    pub fn touch_part(&self, offset: usize, len: usize, access: Access) {
        let at = self.at(offset, len, 4096);
        let advice = match access {
            Access::Read => libc::MADV_POPULATE_READ,
            Access::Write => libc::MADV_POPULATE_WRITE,
        };
        // SAFETY: pages of a mapping of ours are brought in, nothing in them changes. As for the result, see `touch`.
        let _ = unsafe { libc::madvise(at.as_ptr().cast(), len, advice) };
    }

    /// The address of `len` bytes at `offset`, aligned to `align`. Panics if they are not all inside.
    pub(super) fn at(&self, offset: usize, len: usize, align: usize) -> NonNull<u8> {
        let end = offset.checked_add(len).expect("a range of a mapping");
        assert!(
            end <= self.map.len(),
            "{offset}..{end} is outside a mapping of {}",
            self.map.len()
        );
        let start = self.map.start();
        // SAFETY: offset <= the mapping's length, just checked, so the result is inside it or one past its end.
        let address = unsafe { start.add(offset) };
        assert!(
            address.as_ptr().addr().is_multiple_of(align),
            "a view must be aligned"
        );
        address
    }

    /// The `T` at `offset`.
    pub fn view<T: FromBytes>(self: &Arc<Self>, offset: usize) -> View<T> {
        let at = self.at(offset, size_of::<T>(), align_of::<T>());
        View {
            at: at.cast(),
            len: 1,
            map: Arc::clone(self),
            kind: PhantomData,
        }
    }

    /// The `len` `T`s at `offset`.
    pub fn views<T: FromBytes>(self: &Arc<Self>, offset: usize, len: usize) -> View<[T]> {
        let at = self.at(
            offset,
            size_of::<T>()
                .checked_mul(len)
                .expect("a range of a mapping"),
            align_of::<T>(),
        );
        View {
            at: at.cast(),
            len,
            map: Arc::clone(self),
            kind: PhantomData,
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.region.is_ours() {
            // SAFETY: both are dropped here only, and not used afterwards. In this order: no child is to find zeros where
            // something else was mapped meanwhile. What a forked child has in the mapping's place stays.
            unsafe {
                ManuallyDrop::drop(&mut self.region);
                ManuallyDrop::drop(&mut self.map);
            }
        }
    }
}

/// A shared `T` (or slice of `T`s) in a mapping that it keeps alive.
pub struct View<T: ?Sized> {
    at: NonNull<()>,
    len: usize,
    map: Arc<Mapping>,
    kind: PhantomData<fn() -> *const T>,
}

// SAFETY: a view hands out `&T` alone, and the mapping it points to lives as long as it does and is tied to no thread.
unsafe impl<T: ?Sized + Sync> Send for View<T> {}
// SAFETY: as above; `&View<T>` gives no more than `&T`.
unsafe impl<T: ?Sized + Sync> Sync for View<T> {}

impl<T> View<T> {
    /// Has what is seen read anew, where this is a copy. `false`: it is not all there any more.
    pub fn refresh(&self) -> bool {
        self.map.refresh(self.at, size_of::<T>())
    }
}

impl<T: ?Sized> Clone for View<T> {
    fn clone(&self) -> Self {
        Self {
            at: self.at,
            len: self.len,
            map: Arc::clone(&self.map),
            kind: PhantomData,
        }
    }
}

impl<T: ?Sized> fmt::Debug for View<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("map", &self.map)
            .finish_non_exhaustive()
    }
}

impl<T: FromBytes> Deref for View<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `view` checked bounds and alignment; any bytes are a `T` (`FromBytes`); the layout's types consist of
        // atomics, so that others' stores are no data race; the mapping outlives `self`.
        unsafe { self.at.cast::<T>().as_ref() }
    }
}

impl<T: FromBytes> Deref for View<[T]> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: as for one `T`; `views` checked the bounds of all `len`.
        unsafe { NonNull::slice_from_raw_parts(self.at.cast::<T>(), self.len).as_ref() }
    }
}

/// Puts zeros, this process's own, where a mapping was that it has not inherited, or that it has. Async-signal-safe.
pub fn refill(start: usize, len: usize, is_inherited: bool) {
    // Where something of ours is, nobody else can have mapped anything.
    let fixed = match is_inherited {
        true => libc::MAP_FIXED,
        false => libc::MAP_FIXED_NOREPLACE,
    };
    let (access, kind) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed,
    );
    let at = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: an anonymous mapping at an address where, if this succeeds, nothing was, or a mapping of the library's own
    // that no handle uses in a child.
    let got = unsafe { libc::mmap(at, len, access, kind, -1, 0) };
    let taken = got == libc::MAP_FAILED && nix::errno::Errno::last() == nix::errno::Errno::EEXIST;
    if taken || (got != libc::MAP_FAILED && got != at) {
        // Another library's handler was faster, and a handle would write into what is its. (Where there is no memory,
        // touching the handle is a fault, which harms nobody else.)
        std::process::abort();
    }
}

/// Has `before` called by whoever forks, `parent` behind that, and `child` in every forked child, before `fork` returns there: that
/// must be async-signal-safe.
pub fn at_fork(before: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: a plain call; these are functions that live for ever and need no arguments.
    let error = unsafe { libc::pthread_atfork(Some(before), Some(parent), Some(child)) };
    assert_eq!(
        error, 0,
        "pthread_atfork fails only when memory has run out"
    );
}
