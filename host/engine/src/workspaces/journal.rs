//! Gives a file system of ours a journal.
//!
//! An environment's image has none, because most machines throw their disk away. A record's disk is kept, and its
//! machine may be killed at any moment: without a journal the next mount would find a file system that contradicts
//! itself, and nothing in the guest repairs one.
//!
//! What is changed: a run of free blocks becomes inode 8, the journal's, and the superblock says so. Format: "ext4 Data
//! Structures and Algorithms" of the kernel's documentation. Only images as our own writer makes them are understood.

use std::{fs::File, io, os::unix::fs::FileExt};

const SUPERBLOCK: u64 = 1024;
const BLOCK: u64 = 4096;
const MAGIC: u16 = 0xef53;
const JOURNAL_INODE: u64 = 8;
/// Blocks of the journal: 32 MiB, of which the host's disk holds what was written.
const LENGTH: u32 = 8192;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
/// What must not be there, because it would need more than is done here: 64-bit descriptors, and a block group that
/// describes others.
const INCOMPAT_UNKNOWN: u32 = 0x80 | 0x10;
/// Checksums of descriptors and of everything, and blocks in clusters.
const RO_COMPAT_UNKNOWN: u32 = 0x10 | 0x400 | 0x200;

const JBD2_MAGIC: u32 = 0xc03b_3998;
const JBD2_SUPERBLOCK_V2: u32 = 4;

/// Adds a journal to the file system on `disk`, which must be clean and used by nobody. One that has a journal is left
/// as it is.
///
/// # Errors
/// What reading and writing say; `InvalidData` for a file system that is not one of ours, or that has no room.
pub(super) fn add(disk: &File) -> io::Result<()> {
    let mut superblock = read(disk, SUPERBLOCK, 1024)?;
    if get16(&superblock, 0x38)? != MAGIC || get32(&superblock, 0x18)? != 2 {
        return Err(refused("it is no ext4 with blocks of 4 KiB"));
    }
    let compat = get32(&superblock, 0x5c)?;
    if compat & COMPAT_HAS_JOURNAL != 0 {
        return Ok(());
    }
    if get32(&superblock, 0x60)? & INCOMPAT_UNKNOWN != 0 || get32(&superblock, 0x64)? & RO_COMPAT_UNKNOWN != 0 {
        return Err(refused("it has features that are not known here"));
    }
    let blocks = get32(&superblock, 0x04)?;
    let per_group = get32(&superblock, 0x20)?;
    let inode_size = u64::from(get16(&superblock, 0x58)?);
    if per_group == 0 || u64::from(per_group) > BLOCK * 8 || !(160..=BLOCK).contains(&inode_size) {
        return Err(refused("its sizes are absurd"));
    }
    let groups = blocks.div_ceil(per_group);
    let mut descriptors = read(disk, BLOCK, groups as usize * 32)?;
    let inode_table = get32(&descriptors, 8)?;

    for group in 0..groups {
        let at = group as usize * 32;
        let free = get16(&descriptors, at + 12)?;
        if u32::from(free) < LENGTH {
            continue;
        }
        let bitmap_at = u64::from(get32(&descriptors, at)?) * BLOCK;
        let mut bitmap = read(disk, bitmap_at, BLOCK as usize)?;
        let in_group = per_group.min(blocks - group * per_group);
        let Some(run) = free_run(&bitmap, in_group) else { continue };
        for bit in run..run + LENGTH {
            if let Some(byte) = bitmap.get_mut(bit as usize / 8) {
                *byte |= 1 << (bit % 8);
            }
        }
        let first = group * per_group + run;
        // The superblock goes last: until then nothing says that there is a journal.
        disk.write_all_at(&journal_superblock(), u64::from(first) * BLOCK)?;
        let extents = extent_tree(first);
        let inode = inode(&extents, inode_size as usize);
        disk.write_all_at(&inode, u64::from(inode_table) * BLOCK + (JOURNAL_INODE - 1) * inode_size)?;
        disk.write_all_at(&bitmap, bitmap_at)?;
        put(&mut descriptors, at + 12, &(u32::from(free) - LENGTH).to_le_bytes()[..2]);
        disk.write_all_at(&descriptors, BLOCK)?;

        let free = get32(&superblock, 0x0c)?.saturating_sub(LENGTH);
        put(&mut superblock, 0x0c, &free.to_le_bytes());
        put(&mut superblock, 0x5c, &(compat | COMPAT_HAS_JOURNAL).to_le_bytes());
        put(&mut superblock, 0xe0, &(JOURNAL_INODE as u32).to_le_bytes());
        // A copy of the inode, for repairs: where its blocks and its size are.
        put(&mut superblock, 0xfd, &[1]);
        put(&mut superblock, 0x10c, &extents);
        put(&mut superblock, 0x10c + 64, &(LENGTH * BLOCK as u32).to_le_bytes());
        return disk.write_all_at(&superblock, SUPERBLOCK);
    }
    Err(refused("it has no room for a journal"))
}

/// Returns the first of [`LENGTH`] free blocks in a row.
fn free_run(bitmap: &[u8], blocks: u32) -> Option<u32> {
    let mut length = 0;
    for block in 0..blocks {
        let used = bitmap.get(block as usize / 8).is_none_or(|byte| byte & (1 << (block % 8)) != 0);
        length = if used { 0 } else { length + 1 };
        if length == LENGTH {
            return Some(block + 1 - LENGTH);
        }
    }
    None
}

/// An empty journal. Its numbers are big-endian.
fn journal_superblock() -> Vec<u8> {
    let mut bytes = vec![0; BLOCK as usize];
    for (at, value) in
        [(0, JBD2_MAGIC), (4, JBD2_SUPERBLOCK_V2), (12, BLOCK as u32), (16, LENGTH), (20, 1), (24, 1), (64, 1)]
    {
        put(&mut bytes, at, &u32::to_be_bytes(value));
    }
    bytes
}

/// The 60 bytes of an inode that say where its blocks are: one extent.
fn extent_tree(first: u32) -> [u8; 60] {
    let mut bytes = [0; 60];
    for (at, value) in [(0, 0xf30a_u16), (2, 1), (4, 4), (12 + 4, LENGTH as u16)] {
        put(&mut bytes, at, &value.to_le_bytes());
    }
    put(&mut bytes, 12 + 8, &first.to_le_bytes());
    bytes
}

fn inode(extents: &[u8; 60], size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    // A regular file of mode 0600 with one link, found by extents.
    put(&mut bytes, 0x00, &0o100_600_u16.to_le_bytes());
    put(&mut bytes, 0x04, &(LENGTH * BLOCK as u32).to_le_bytes());
    put(&mut bytes, 0x1a, &1_u16.to_le_bytes());
    put(&mut bytes, 0x1c, &(LENGTH * (BLOCK / 512) as u32).to_le_bytes());
    put(&mut bytes, 0x20, &0x8_0000_u32.to_le_bytes());
    put(&mut bytes, 0x28, extents);
    put(&mut bytes, 0x80, &32_u16.to_le_bytes());
    bytes
}

fn read(disk: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    disk.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn get16(bytes: &[u8], at: usize) -> io::Result<u16> {
    let found = bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
    found.map(u16::from_le_bytes).ok_or_else(|| refused("it is cut short"))
}

fn get32(bytes: &[u8], at: usize) -> io::Result<u32> {
    let found = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    found.map(u32::from_le_bytes).ok_or_else(|| refused("it is cut short"))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the file system gets no journal: {why}"))
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use arcbox_ext4::{FormatOptions, Formatter};

    use super::*;

    fn image(path: &Path, mib: u64, files: u8) {
        let mut image = Formatter::with_options(path, FormatOptions::new(mib << 20).label("test")).unwrap();
        for n in 0..files {
            let mut content: &[u8] = &vec![n; 1_000_000];
            let mode = arcbox_ext4::constants::make_mode(arcbox_ext4::constants::file_mode::S_IFREG, 0o644);
            image.create(&format!("/f{n}"), mode, None, None, Some(&mut content), None, None, None).unwrap();
        }
        image.close().unwrap();
    }

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn a_file_system_gets_a_journal_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        image(&path, 512, 40);
        add(&open(&path)).unwrap();
        let superblock = read(&open(&path), SUPERBLOCK, 1024).unwrap();
        assert_eq!(get32(&superblock, 0x5c).unwrap() & COMPAT_HAS_JOURNAL, COMPAT_HAS_JOURNAL);
        add(&open(&path)).unwrap();
        assert_eq!(read(&open(&path), SUPERBLOCK, 1024).unwrap(), superblock);
        // The checker of the file system's own makers finds nothing to say, where it is installed.
        let check = ["/usr/sbin/e2fsck", "/sbin/e2fsck"].into_iter().find(|program| Path::new(program).exists());
        if let Some(check) = check {
            let said = Command::new(check).args(["-f", "-n"]).arg(&path).output().unwrap();
            assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
        }
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        assert_eq!(add(&open(&path)).unwrap_err().kind(), io::ErrorKind::InvalidData);
        std::fs::write(&path, b"short").unwrap();
        assert!(add(&open(&path)).is_err());
        let path = dir.path().join("small");
        image(&path, 128, 110);
        let before = std::fs::read(&path).unwrap();
        let error = add(&open(&path)).unwrap_err();
        assert!(error.to_string().contains("no room"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn free_runs_are_found() {
        let mut bitmap = vec![0xff; BLOCK as usize];
        assert_eq!(free_run(&bitmap, 32768), None);
        bitmap[100..100 + 1024].fill(0);
        assert_eq!(free_run(&bitmap, 32768), Some(800));
        bitmap[500] = 1;
        assert_eq!(free_run(&bitmap, 32768), None);
        bitmap[1500..1500 + 1025].fill(0);
        bitmap[1500] = 0x80;
        assert_eq!(free_run(&bitmap, 32768), Some(12008));
        assert_eq!(free_run(&bitmap, 12008 + 8191), None);
    }
}
