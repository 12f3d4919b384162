//! The one place that vouches for the layout of types shared with the kernel.

/// Compiles only for types whose every byte is a field's.
pub(crate) const fn no_padding<T: zerocopy::IntoBytes>() {}

/// Asserts size and alignment of a map type, proves that it has no padding, and makes it an `aya::Pod`.
///
/// A hidden hole is a compile error: the kernel compares map keys byte by byte, so padding would make equal keys differ.
macro_rules! abi {
    ($type:ty, size = $size:literal, align = $align:literal) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            assert!(align_of::<$type>() == $align);
            $crate::abi::no_padding::<$type>();
        };
        #[cfg(feature = "user")]
        #[expect(unsafe_code, reason = "Pod is an unsafe marker")]
        // SAFETY: `IntoBytes` above proves that every byte is initialised, and the type is `Copy` and `'static`.
        unsafe impl aya::Pod for $type {}
    };
}
