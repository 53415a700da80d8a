//! What a topic can carry: plain bytes, or values of one type.

use std::fmt;
use std::ops::Deref;

use xxhash_rust::const_xxh3::xxh3_64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::shm::layout::{Pattern, TopicConfig};

/// A type whose values can be sent as they lie in memory, and read in place.
///
/// zerocopy's traits prove that any bytes are a value and that a value has no padding; the name and version are what
/// two programs, compiled apart, agree by. The alignment is at most 8.
///
/// ```
/// use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
///
/// #[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, PartialEq)]
/// #[repr(C)]
/// struct Tick {
///     price: i64,
///     size: u32,
///     venue: u32,
/// }
///
/// impl buslane::Message for Tick {
///     const NAME: &'static str = "market.Tick";
/// }
///
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// let topic = bus.typed::<Tick>("ticks")?;
/// let mut subscriber = topic.subscriber()?;
/// let mut publisher = topic.publisher()?;
/// publisher.send_value(&Tick { price: 101_25, size: 3, venue: 7 })?;
/// assert_eq!(subscriber.recv()?.price, 101_25);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Message: FromBytes + IntoBytes + KnownLayout + Immutable {
    /// The same in every program that uses this type, at most 192 bytes; a topic keeps it.
    const NAME: &'static str;
    /// To be raised when the meaning of the fields changes.
    const VERSION: u32 = 1;
}

mod sealed {
    pub trait Sealed {}
}

/// What a topic can carry: `[u8]`, any [`Message`], or [`Any`] of these.
pub trait Payload: sealed::Sealed + 'static {
    /// A copy that outlives the frame.
    type Owned;

    /// Bytes of each payload, if they are always the same.
    #[doc(hidden)]
    const SIZE: Option<u64>;

    /// The hash of the type's name; 0 if it has none.
    #[doc(hidden)]
    const TYPE_ID: u64;

    /// The payload of a frame that has this size.
    #[doc(hidden)]
    fn in_frame(bytes: &[u8]) -> &Self;

    /// A copy of what a frame holds that has this size; it need not be aligned.
    #[doc(hidden)]
    fn read(bytes: &[u8]) -> Self::Owned;

    /// A copy that outlives the frame.
    #[doc(hidden)]
    fn copied(&self) -> Self::Owned {
        Self::read(self.bytes())
    }

    /// As it lies in a frame.
    #[doc(hidden)]
    fn bytes(&self) -> &[u8];

    /// How a topic describes it.
    #[doc(hidden)]
    fn describe() -> PayloadType;
}

impl sealed::Sealed for [u8] {}

impl Payload for [u8] {
    type Owned = Vec<u8>;

    const SIZE: Option<u64> = None;
    const TYPE_ID: u64 = 0;

    #[inline]
    fn in_frame(bytes: &[u8]) -> &Self {
        bytes
    }

    fn read(bytes: &[u8]) -> Vec<u8> {
        bytes.to_vec()
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        self
    }

    fn describe() -> PayloadType {
        PayloadType::bytes()
    }
}

/// The bytes of a message, whatever type its topic carries: for who passes messages on, records or shows them, and does not
/// mean one type. It derefs to the bytes.
///
/// ```
/// use buslane::Any;
/// # use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
/// # #[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
/// # #[repr(C)]
/// # struct Sample(u64);
/// # impl buslane::Message for Sample {
/// #     const NAME: &'static str = "Sample";
/// # }
///
/// # let dir = tempfile::tempdir_in("/dev/shm")?;
/// # let bus = buslane::Bus::at(dir.path().join("bus"))?;
/// let mut samples = bus.typed::<Sample>("samples")?.subscriber()?;
/// let topic = bus.topic_builder("samples").open_any()?;
/// assert_eq!((topic.carries().name(), topic.carries().size()), ("Sample", Some(8)));
/// let mut copies = topic.subscriber()?;
///
/// let mut publisher = topic.publisher()?;
/// publisher.send_any(None, &7_u64.to_le_bytes(), None)?;
/// assert!(publisher.send_any(None, b"no sample", None).is_err());
/// assert_eq!(samples.recv()?.0, 7);
/// assert_eq!(copies.recv()?.len(), 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct Any([u8]);

impl Deref for Any {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl sealed::Sealed for Any {}

impl Payload for Any {
    type Owned = Vec<u8>;

    const SIZE: Option<u64> = None;
    const TYPE_ID: u64 = 0;

    #[inline]
    fn in_frame(bytes: &[u8]) -> &Self {
        Self::ref_from_bytes(bytes).expect("any bytes are one")
    }

    fn read(bytes: &[u8]) -> Vec<u8> {
        bytes.to_vec()
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn describe() -> PayloadType {
        PayloadType {
            stands_for_any: true,
            ..PayloadType::bytes()
        }
    }
}

impl<T: Message> sealed::Sealed for T {}

impl<T: Message + 'static> Payload for T {
    type Owned = T;

    const SIZE: Option<u64> = Some(size_of::<T>() as u64);
    // As `Envelope::id_of_type`, which is fast for what is known only then.
    const TYPE_ID: u64 = xxh3_64(T::NAME.as_bytes());

    #[inline]
    fn in_frame(bytes: &[u8]) -> &Self {
        T::ref_from_bytes(bytes).expect("as many bytes as the type has, aligned")
    }

    fn read(bytes: &[u8]) -> T {
        let mut copy = T::new_zeroed();
        copy.as_mut_bytes().copy_from_slice(bytes);
        copy
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    fn describe() -> PayloadType {
        const {
            assert!(
                align_of::<T>() <= 8,
                "a payload stands 8 bytes behind a multiple of 16"
            )
        };
        PayloadType::new(T::NAME, T::VERSION, Some(size_of::<T>()), align_of::<T>())
    }
}

/// What type of messages a topic carries: what two programs compare. Made by [`Topic::carries`](crate::Topic::carries).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadType {
    name: String,
    version: u32,
    /// 0: any.
    size: usize,
    align: usize,
    /// What a program means that takes a topic as it is.
    stands_for_any: bool,
}

impl PayloadType {
    /// That of a topic of bytes.
    #[must_use]
    pub fn bytes() -> Self {
        Self::new("bytes", 0, None, 1)
    }

    /// A type that is known by its description alone, as from a recording or another host. `size` is that of each message in bytes, if it
    /// is always the same.
    #[must_use]
    pub fn new(name: &str, version: u32, size: Option<usize>, align: usize) -> Self {
        Self {
            name: name.to_owned(),
            version,
            size: size.unwrap_or(0),
            align,
            stands_for_any: false,
        }
    }

    /// The type's name: [`Message::NAME`], or `bytes`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its version: [`Message::VERSION`], or 0.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Bytes in each message, if it is always the same.
    #[must_use]
    pub fn size(&self) -> Option<usize> {
        (self.size != 0).then_some(self.size)
    }

    /// What the address of a message is a multiple of, in bytes.
    #[must_use]
    pub fn align(&self) -> usize {
        self.align
    }

    /// Whether a program that means this can use a topic that carries `theirs`.
    pub(crate) fn admits(&self, theirs: &Self) -> bool {
        self.stands_for_any || self == theirs
    }

    /// As a topic of this pattern keeps it; `None`: the name is too long.
    pub(crate) fn to_config(&self, pattern: Pattern, sizes: [u64; 3]) -> Option<TopicConfig> {
        let mut type_name = [0; 192];
        type_name
            .get_mut(..self.name.len())?
            .copy_from_slice(self.name.as_bytes());
        Some(TopicConfig {
            pattern: pattern as u32,
            type_version: self.version,
            type_size: self.size as u64,
            type_align: self.align as u64,
            type_name_len: self.name.len() as u64,
            type_name,
            sizes,
            logged: 0,
            sync_ns: 0,
            keep_bytes: 0,
            keep_ns: 0,
        })
    }

    pub(crate) fn from_config(config: &TopicConfig) -> Self {
        let len = config.type_name.len().min(config.type_name_len as usize);
        Self {
            name: String::from_utf8_lossy(&config.type_name[..len]).into_owned(),
            version: config.type_version,
            size: config.type_size as usize,
            align: config.type_align as usize,
            stands_for_any: false,
        }
    }
}

impl fmt::Display for PayloadType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            version,
            align,
            ..
        } = self;
        match self.size() {
            None => write!(f, "{name}"),
            Some(size) => write!(
                f,
                "{name} version {version} ({size} bytes, alignment {align})"
            ),
        }
    }
}
