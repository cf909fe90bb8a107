//! Taking the ELF out of a Linux x86-64 kernel image.
//!
//! A bzImage is a small decompressor with the real kernel as its payload. Entering the ELF directly saves the guest the
//! decompression, which under a software CPU is most of a boot. Field offsets: the Linux/x86 boot protocol,
//! `Documentation/arch/x86/boot.rst`; the compressed formats are those that the kernel's build offers and Debian has
//! used. The image may come from anywhere, so every size is bounded before it is believed.
//!
//! Deliberately absent: bzip2, lzma and lzo payloads, which no distribution's current kernel has.

use std::io::Read;

/// No kernel is larger; Debian's cloud kernels are about 14 MB.
pub(crate) const MAX_IMAGE_BYTES: u64 = 256 * 1024 * 1024;
/// No decompressed kernel is larger; Debian's cloud kernels are about 55 MB.
const MAX_ELF_BYTES: u64 = 512 * 1024 * 1024;
/// Window of a zstd frame; the kernel's build uses up to 128 MiB.
const MAX_ZSTD_WINDOW: u64 = 128 * 1024 * 1024;

const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first protocol that says where the payload is.
const MIN_VERSION: u16 = 0x0208;

const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// A block of the legacy format never holds more.
const LZ4_LEGACY_BLOCK: usize = 8 * 1024 * 1024;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const XZ_MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];

/// Why an image is not a kernel that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KernelError {
    #[error("it is neither a bzImage nor an x86-64 ELF program")]
    NotKernel,
    #[error("its boot protocol {0:#06x} is older than {MIN_VERSION:#06x}")]
    TooOld(u16),
    #[error("the payload ({offset} + {length} bytes) lies outside the image")]
    Outside { offset: u64, length: u64 },
    #[error("its payload begins with {0}, a compression that is not supported (lz4, zstd, gzip and xz are)")]
    Compression(String),
    #[error("its payload grows beyond {MAX_ELF_BYTES} bytes")]
    TooLarge,
    #[error("its payload is damaged: {0}")]
    Damaged(String),
    #[error("its payload is no x86-64 ELF program")]
    NotElf,
}

/// Returns the ELF inside a bzImage, or the image itself when it is an ELF already.
///
/// # Errors
/// [`KernelError`] for anything else, whatever its bytes are.
pub(crate) fn extract_elf(image: &[u8]) -> Result<Vec<u8>, KernelError> {
    if is_elf(image) {
        return Ok(image.to_vec());
    }
    let payload = payload(image)?;
    let elf = decompress(payload)?;
    if is_elf(&elf) { Ok(elf) } else { Err(KernelError::NotElf) }
}

/// Returns the release that a kernel calls itself (`uname -r`), when it says so where all kernels of this age do.
pub(crate) fn release(elf: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    const LONGEST: usize = 64;
    let mut rest = elf;
    loop {
        let at = rest.windows(BANNER.len()).position(|window| window == BANNER)? + BANNER.len();
        rest = rest.get(at..)?;
        let end = rest.iter().take(LONGEST + 1).position(|&byte| byte == b' ').unwrap_or(0);
        let word = rest.get(..end)?;
        // The same words are in a format string as well.
        if word.first().is_some_and(u8::is_ascii_digit) {
            return String::from_utf8(word.to_vec()).ok();
        }
    }
}

/// ELF64, little endian, x86-64.
fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01") && bytes.get(18..20) == Some(&[62, 0]) && bytes.len() >= 64
}

fn payload(image: &[u8]) -> Result<&[u8], KernelError> {
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        return Err(KernelError::NotKernel);
    }
    let version = read_u16(image, VERSION)?;
    if version < MIN_VERSION {
        return Err(KernelError::TooOld(version));
    }
    // 0 stands for 4, for the sake of very old loaders.
    let setup_sectors = match image.get(SETUP_SECTS).copied().ok_or(KernelError::NotKernel)? {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let offset = (setup_sectors + 1) * 512 + u64::from(read_u32(image, PAYLOAD_OFFSET)?);
    let length = u64::from(read_u32(image, PAYLOAD_LENGTH)?);
    usize::try_from(offset)
        .ok()
        .zip(usize::try_from(offset + length).ok())
        .and_then(|(from, to)| image.get(from..to))
        .ok_or(KernelError::Outside { offset, length })
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, KernelError> {
    if payload.starts_with(&LZ4_LEGACY_MAGIC) {
        lz4_legacy(payload)
    } else if payload.starts_with(&ZSTD_MAGIC) {
        let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(payload, MAX_ZSTD_WINDOW)
            .map_err(|e| KernelError::Damaged(e.to_string()))?;
        read_bounded(decoder)
    } else if payload.starts_with(&GZIP_MAGIC) {
        read_bounded(flate2::read::GzDecoder::new(payload))
    } else if payload.starts_with(&XZ_MAGIC) {
        read_bounded(liblzma::read::XzDecoder::new(payload))
    } else if is_elf(payload) {
        Ok(payload.to_vec())
    } else {
        Err(KernelError::Compression(hex::encode(payload.get(..4).unwrap_or(payload))))
    }
}

/// What follows the compressed stream (the kernel's build appends the size) is not read.
fn read_bounded(decoder: impl Read) -> Result<Vec<u8>, KernelError> {
    let mut out = Vec::new();
    decoder.take(MAX_ELF_BYTES + 1).read_to_end(&mut out).map_err(|e| KernelError::Damaged(e.to_string()))?;
    if out.len() as u64 > MAX_ELF_BYTES { Err(KernelError::TooLarge) } else { Ok(out) }
}

/// The format of `lz4 -l`: a magic number, then blocks, each with its compressed size in front. The kernel's build
/// appends the decompressed size, which ends the blocks as it is no block that fits.
fn lz4_legacy(payload: &[u8]) -> Result<Vec<u8>, KernelError> {
    let mut rest = payload.get(LZ4_LEGACY_MAGIC.len()..).unwrap_or_default();
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_LEGACY_BLOCK];
    while let Some((size, after)) = rest.split_first_chunk::<4>() {
        if *size == LZ4_LEGACY_MAGIC {
            rest = after;
            continue;
        }
        // The last four bytes are not a block: with no byte after them they are the appended size.
        if after.is_empty() {
            break;
        }
        let compressed = usize::try_from(u32::from_le_bytes(*size))
            .ok()
            .and_then(|size| after.split_at_checked(size))
            .ok_or_else(|| KernelError::Damaged("an lz4 block is cut off".to_owned()))?;
        let count = lz4_flex::block::decompress_into(compressed.0, &mut block)
            .map_err(|e| KernelError::Damaged(e.to_string()))?;
        if (out.len() + count) as u64 > MAX_ELF_BYTES {
            return Err(KernelError::TooLarge);
        }
        out.extend_from_slice(block.get(..count).unwrap_or_default());
        rest = compressed.1;
    }
    Ok(out)
}

fn read_u16(bytes: &[u8], at: usize) -> Result<u16, KernelError> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u16::from_le_bytes(*b)).ok_or(KernelError::NotKernel)
}

fn read_u32(bytes: &[u8], at: usize) -> Result<u32, KernelError> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b)).ok_or(KernelError::NotKernel)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// A minimal x86-64 ELF with some bytes that compress and some that do not.
    pub(crate) fn elf(size: usize) -> Vec<u8> {
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(18, 0);
        out.extend([62, 0]);
        let mut state = 7u32;
        while out.len() < size.max(64) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            out.push(if out.len().is_multiple_of(3) { (state >> 24) as u8 } else { 0 });
        }
        out
    }

    /// A bzImage around a payload, as the boot protocol lays it out.
    pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0u8; 5 * 512];
        out[SETUP_SECTS] = 4;
        out[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        out[VERSION..VERSION + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        out[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&100u32.to_le_bytes());
        out[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend([0x90; 100]);
        out.extend(payload);
        out.extend([0xcc; 33]);
        out
    }

    /// As the kernel's build does: the size of the ELF after the compressed stream.
    fn with_size(mut compressed: Vec<u8>, elf: &[u8]) -> Vec<u8> {
        compressed.extend((elf.len() as u32).to_le_bytes());
        compressed
    }

    pub(crate) fn lz4(elf: &[u8]) -> Vec<u8> {
        let mut out = LZ4_LEGACY_MAGIC.to_vec();
        for chunk in elf.chunks(LZ4_LEGACY_BLOCK) {
            let block = lz4_flex::block::compress(chunk);
            out.extend((block.len() as u32).to_le_bytes());
            out.extend(block);
        }
        with_size(out, elf)
    }

    fn gzip(elf: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(elf).unwrap();
        with_size(encoder.finish().unwrap(), elf)
    }

    fn xz(elf: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(elf).unwrap();
        with_size(encoder.finish().unwrap(), elf)
    }

    fn zstd(elf: &[u8]) -> Vec<u8> {
        with_size(ruzstd::encoding::compress_to_vec(elf, ruzstd::encoding::CompressionLevel::Fastest), elf)
    }

    #[test]
    fn every_compression_gives_the_elf_back() {
        let elf = elf(300_000);
        for (name, pack) in
            [("lz4", lz4 as fn(&[u8]) -> Vec<u8>), ("gzip", gzip), ("xz", xz), ("zstd", zstd), ("none", <[u8]>::to_vec)]
        {
            assert!(extract_elf(&bzimage(&pack(&elf))).unwrap() == elf, "{name}");
        }
    }

    #[test]
    fn more_than_one_lz4_block() {
        let elf = elf(2 * LZ4_LEGACY_BLOCK + 1000);
        assert!(extract_elf(&bzimage(&lz4(&elf))).unwrap() == elf);
    }

    #[test]
    fn an_elf_is_taken_as_it_is() {
        let elf = elf(100);
        assert_eq!(extract_elf(&elf).unwrap(), elf);
    }

    #[test]
    fn a_kernel_says_its_release() {
        assert_eq!(release(b"Linux version %s\0Linux version 6.1.0-56-cloud (x@y)").as_deref(), Some("6.1.0-56-cloud"));
        assert_eq!(release(b"Linux version 6.1"), None);
        assert_eq!(release(&elf(5000)), None);
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert_eq!(extract_elf(b""), Err(KernelError::NotKernel));
        assert_eq!(extract_elf(&[0; 10_000]), Err(KernelError::NotKernel));
        assert_eq!(extract_elf(b"\x7fELF"), Err(KernelError::NotKernel));
        let mut other_machine = elf(100);
        other_machine[18] = 40;
        assert_eq!(extract_elf(&other_machine), Err(KernelError::NotKernel));
        let mut old = bzimage(&lz4(&elf(100)));
        old[VERSION] = 4;
        assert_eq!(extract_elf(&old), Err(KernelError::TooOld(0x0204)));
        assert_eq!(extract_elf(&bzimage(b"BZh9 and more")), Err(KernelError::Compression("425a6839".to_owned())));
        assert_eq!(extract_elf(&bzimage(&lz4(&[7; 500]))), Err(KernelError::NotElf));
    }

    #[test]
    fn a_payload_outside_the_image_is_refused() {
        let mut image = bzimage(&lz4(&elf(100)));
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(extract_elf(&image), Err(KernelError::Outside { length: 0xffff_ffff, .. })));
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(extract_elf(&image), Err(KernelError::Outside { .. })));
    }

    #[test]
    fn cut_off_payloads_are_refused() {
        let elf = elf(300_000);
        for pack in [lz4 as fn(&[u8]) -> Vec<u8>, gzip, xz, zstd] {
            let mut packed = pack(&elf);
            packed.truncate(packed.len() / 2);
            assert!(matches!(extract_elf(&bzimage(&packed)), Err(KernelError::Damaged(_))));
        }
    }

    #[test]
    fn a_decompression_bomb_stops_at_the_limit() {
        // 8 MiB of zeros are 33 KiB: about 600 MiB in 2.4 MiB.
        let block = lz4_flex::block::compress(&vec![0; LZ4_LEGACY_BLOCK]);
        let mut packed = LZ4_LEGACY_MAGIC.to_vec();
        for _ in 0..MAX_ELF_BYTES / LZ4_LEGACY_BLOCK as u64 + 2 {
            packed.extend((block.len() as u32).to_le_bytes());
            packed.extend(&block);
        }
        assert_eq!(extract_elf(&bzimage(&packed)), Err(KernelError::TooLarge));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(payload in proptest::collection::vec(any::<u8>(), 0..600), kind in 0usize..5) {
            let magic: &[u8] = [&LZ4_LEGACY_MAGIC[..], &ZSTD_MAGIC, &GZIP_MAGIC, &XZ_MAGIC, b""][kind];
            let _ = extract_elf(&bzimage(&[magic, &payload].concat()));
            let _ = extract_elf(&payload);
        }
    }
}
