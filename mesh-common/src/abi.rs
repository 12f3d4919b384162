//! The one place that vouches for the layout of types shared with the kernel.

/// Asserts size and alignment of a map type, proves that it has no padding, and makes it an `aya::Pod`.
///
/// A hidden hole is a compile error: the kernel compares map keys byte by byte, so padding would make equal keys differ.
macro_rules! abi {
    ($type:ty, size = $size:literal, align = $align:literal) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            assert!(align_of::<$type>() == $align);
            const fn no_padding<T: zerocopy::IntoBytes>() {}
            no_padding::<$type>();
        };
        // SAFETY: `IntoBytes` above proves that every byte is initialised, and the type is `Copy` and `'static`.
        #[cfg(feature = "user")]
        #[expect(
            unsafe_code,
            reason = "Pod is an unsafe marker; the proof stands above"
        )]
        unsafe impl aya::Pod for $type {}
    };
}
