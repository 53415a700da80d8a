//! What a topic can carry: plain bytes, or values of one type.

use xxhash_rust::const_xxh3::xxh3_64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

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

/// What a topic can carry: `[u8]`, or any [`Message`].
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
    fn describe() -> Description;
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

    fn describe() -> Description {
        Description {
            name: String::from("bytes"),
            version: 0,
            size: 0,
            align: 1,
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

    fn describe() -> Description {
        const {
            assert!(
                align_of::<T>() <= 8,
                "a payload stands 8 bytes behind a multiple of 16"
            )
        };
        Description {
            name: T::NAME.to_owned(),
            version: T::VERSION,
            size: size_of::<T>(),
            align: align_of::<T>(),
        }
    }
}

/// What two programs compare.
#[derive(Clone, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub struct Description {
    name: String,
    version: u32,
    size: usize,
    align: usize,
}

impl Description {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn size(&self) -> usize {
        self.size
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
        }
    }
}

impl std::fmt::Display for Description {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            version,
            size,
            align,
        } = self;
        match size {
            0 => write!(f, "{name}"),
            _ => write!(
                f,
                "{name} version {version} ({size} bytes, alignment {align})"
            ),
        }
    }
}
