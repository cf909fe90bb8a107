//! The block device (virtio 1.2, section 5.2) on a raw image file.
//!
//! One thread per disk takes requests off the queue. What the page cache can answer it answers
//! itself; what might wait (a read that misses, a flush, a discard) goes to a few workers, so
//! many requests are under way and neither a vCPU nor the queue waits for the disk. The number
//! under way never exceeds the queue's size: a driver that offers a buffer again before it got it
//! back breaks its device.
//!
//! No io_uring: it is often forbidden by the seccomp profiles of containers, which is where this
//! runs most, and cached reads, the common case, are fastest without a hand-over.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::image::{CachedRead, Image};
use super::iovec::{BuffersError, GuestBuffers};
use super::{Activation, VirtioDevice, lock, read_space};
use crate::memory::GuestRam;
use crate::stats::DriveCounters;

/// The device id of a block device.
const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZES: &[u16] = &[256];
/// Threads per disk for requests that may wait.
const WORKERS: usize = 2;
/// Data buffers per request told to the driver: with header and status one queue's worth.
const SEGMENTS: u32 = 254;
/// Most sectors of one discard or write-zeroes segment: 1 GiB.
const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// Most segments of one discard or write-zeroes request.
const MAX_RANGES: u32 = 32;
/// Writes up to this size are done by the queue's thread: a copy into the page cache.
const INLINE_WRITE: u64 = 128 * 1024;

const SECTOR: u64 = 512;

/// Feature bits (virtio 1.2, section 5.2.3).
mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (virtio 1.2, section 5.2.6).
mod request {
    pub const READ: u32 = 0;
    pub const WRITE: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

const STATUS_OK: u8 = 0;
const STATUS_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

/// A disk image.
#[derive(Debug)]
pub struct Disk {
    /// The open image.
    pub image: Image,
    /// Number of 512-byte sectors.
    pub sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether a flush reaches the host's disk.
    pub durable: bool,
    /// What the guest reads as the disk's serial number.
    pub serial: [u8; 20],
}

/// The device as its transport sees it. Dropping it ends its threads.
pub struct Block {
    shared: Arc<BlockShared>,
    event: Arc<EventFd>,
    config: [u8; 60],
    threads: Vec<JoinHandle<()>>,
}

struct BlockShared {
    disk: Disk,
    counters: Arc<DriveCounters>,
    active: Mutex<Option<Activation>>,
    jobs: Mutex<Jobs>,
    /// A job waits, or there will be none.
    for_workers: Condvar,
    /// Nothing is under way.
    drained: Condvar,
    ended: AtomicBool,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// Taken off the queue and not answered yet, waiting ones included.
    under_way: usize,
    /// How many wait until nothing is. To notify costs a system call even when nobody does, with every request.
    draining: usize,
    ended: bool,
}

/// A request that may wait for the disk.
struct Job {
    active: Activation,
    request: Request,
}

struct Request {
    head: u16,
    kind: u32,
    sector: u64,
    /// Data only: header and status are off.
    data: GuestBuffers,
    status: GuestAddress,
    started: Instant,
    /// Bytes of a read that are in the guest already.
    done: u64,
}

impl Block {
    /// Starts the disk's threads. `event` is a blocking event counter; `setup` runs first in each of them: where they enter their jail,
    /// or must end.
    pub fn new(
        name: &str,
        disk: Disk,
        event: Arc<EventFd>,
        counters: Arc<DriveCounters>,
        setup: Arc<dyn Fn() -> bool + Send + Sync>,
    ) -> io::Result<Block> {
        let config = config_space(&disk);
        let shared = Arc::new(BlockShared {
            disk,
            counters,
            active: Mutex::new(None),
            jobs: Mutex::new(Jobs::default()),
            for_workers: Condvar::new(),
            drained: Condvar::new(),
            ended: AtomicBool::new(false),
        });
        let mut block = Block { shared: shared.clone(), event: event.clone(), config, threads: Vec::new() };
        let (queue_shared, queue_setup) = (shared.clone(), setup.clone());
        block.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            if queue_setup() {
                queue_shared.run_queue(&event);
            }
        })?);
        for index in 0..WORKERS {
            let (shared, setup) = (shared.clone(), setup.clone());
            block.threads.push(std::thread::Builder::new().name(format!("{name}-{index}")).spawn(move || {
                if setup() {
                    shared.run_worker();
                }
            })?);
        }
        Ok(block)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        lock(&self.shared.jobs).ended = true;
        self.shared.for_workers.notify_all();
        let _ = self.event.write(1);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        let common = (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH;
        if self.shared.disk.read_only {
            common | feature::RO
        } else {
            common | feature::DISCARD | feature::WRITE_ZEROES
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        *lock(&self.shared.active) = Some(activation);
        // A driver may have added requests before DRIVER_OK.
        let _ = self.event.write(1);
    }

    fn reset(&mut self) {
        *lock(&self.shared.active) = None;
        self.drain();
    }

    fn drain(&self) {
        let mut jobs = lock(&self.shared.jobs);
        jobs.draining += 1;
        while jobs.under_way > 0 {
            jobs = self.shared.drained.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
        jobs.draining -= 1;
    }
}

/// `struct virtio_blk_config` (virtio 1.2, section 5.2.4).
fn config_space(disk: &Disk) -> [u8; 60] {
    let mut space = [0; 60];
    let mut put = |offset: usize, bytes: &[u8]| {
        if let Some(field) = space.get_mut(offset..offset + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, &disk.sectors.to_le_bytes());
    put(12, &SEGMENTS.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    put(36, &MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    // Discards smaller than a host block free nothing.
    put(44, &8u32.to_le_bytes());
    put(48, &MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    // Write-zeroes may give the blocks back.
    put(56, &[1]);
    space
}

/// A driver that broke its queue.
#[derive(Debug, thiserror::Error)]
enum RingError {
    #[error(transparent)]
    Ring(#[from] virtio_queue::Error),
    #[error(transparent)]
    Buffers(#[from] BuffersError),
    #[error("a request of {0} bytes has no room for header and status")]
    TooShort(u64),
    #[error("more requests under way than the queue can hold")]
    TooMany,
}

impl BlockShared {
    fn run_queue(&self, event: &EventFd) {
        loop {
            match event.read() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "a disk's queue thread cannot wait for its event");
                    return;
                }
            }
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            // Held while requests are taken: a reset waits for us, then for the jobs.
            let active = lock(&self.active);
            let Some(activation) = active.as_ref() else {
                continue;
            };
            if activation.interrupt.is_broken() {
                continue;
            }
            if let Err(error) = self.serve_queue(activation) {
                activation.interrupt.mark_broken("virtio-blk", &error);
            }
        }
    }

    fn serve_queue(&self, active: &Activation) -> Result<(), RingError> {
        let Some(shared_queue) = active.queues.first() else {
            return Ok(());
        };
        let ram = &active.ram;
        loop {
            let mut queue = lock(shared_queue);
            if !queue.ready() {
                return Ok(());
            }
            queue.disable_notification(ram)?;
            let mut used = false;
            while let Some(chain) = queue.iter(ram)?.next() {
                let head = chain.head_index();
                let limit = usize::from(queue.size());
                {
                    let mut jobs = lock(&self.jobs);
                    if jobs.under_way >= limit {
                        return Err(RingError::TooMany);
                    }
                    jobs.under_way += 1;
                }
                let request = match parse(ram, head, chain) {
                    Ok(request) => request,
                    Err(error) => {
                        self.answered();
                        return Err(error);
                    }
                };
                // The queue is not needed while the request is served.
                drop(queue);
                let done = self.serve_or_defer(active, request);
                queue = lock(shared_queue);
                if let Some((head, len)) = done {
                    let result = queue.add_used(ram, head, len);
                    self.answered();
                    result?;
                    used = true;
                }
            }
            // Before waiting for more: answers must not wait for requests.
            let more = queue.enable_notification(ram)?;
            if used {
                notify(&mut queue, active)?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Serves a request now, or hands it to a worker and returns nothing.
    fn serve_or_defer(&self, active: &Activation, mut request: Request) -> Option<(u16, u32)> {
        let now = match request.kind {
            request::READ => match self.in_bounds(&request) {
                // What was cached is read; a worker reads the rest.
                true => match self.read_cached(&active.ram, &mut request) {
                    Some(outcome) => return Some(self.finish(&active.ram, request, outcome)),
                    None => false,
                },
                false => true,
            },
            request::WRITE => request.data.len() <= INLINE_WRITE,
            request::FLUSH => !self.disk.durable || self.disk.read_only,
            request::DISCARD | request::WRITE_ZEROES => false,
            _ => true,
        };
        if now {
            let outcome = self.serve(&active.ram, &mut request);
            return Some(self.finish(&active.ram, request, outcome));
        }
        self.counters.deferred.add(1);
        lock(&self.jobs).waiting.push_back(Job { active: active.clone(), request });
        self.for_workers.notify_one();
        None
    }

    fn read_cached(&self, ram: &GuestRam, request: &mut Request) -> Option<Outcome> {
        let wanted = request.data.len();
        let offset = request.sector * SECTOR + request.done;
        match self.disk.image.read_cached(ram, &mut request.data, offset) {
            Ok(CachedRead::Done(count)) => Some(Outcome::read(count)),
            Ok(CachedRead::WouldWait) => {
                // A worker goes on behind what is there already.
                request.done += wanted - request.data.len();
                None
            }
            Err(error) => Some(self.failed("read", &error)),
        }
    }

    fn run_worker(&self) {
        loop {
            let mut jobs = lock(&self.jobs);
            let job = loop {
                if let Some(job) = jobs.waiting.pop_front() {
                    break job;
                }
                if jobs.ended {
                    return;
                }
                jobs = self.for_workers.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            };
            drop(jobs);
            let Job { active, mut request } = job;
            let outcome = self.serve(&active.ram, &mut request);
            let (head, len) = self.finish(&active.ram, request, outcome);
            if let Some(queue) = active.queues.first() {
                let mut queue = lock(queue);
                let result = queue.add_used(&active.ram, head, len).and_then(|()| notify(&mut queue, &active));
                if let Err(error) = result {
                    active.interrupt.mark_broken("virtio-blk", &error);
                }
            }
            self.answered();
        }
    }

    /// Counts a request as answered, after its used entry was written.
    fn answered(&self) {
        let mut jobs = lock(&self.jobs);
        jobs.under_way = jobs.under_way.saturating_sub(1);
        if jobs.under_way == 0 && jobs.draining > 0 {
            self.drained.notify_all();
        }
    }

    /// Writes the status byte. Returns what goes into the used ring.
    fn finish(&self, ram: &GuestRam, request: Request, outcome: Outcome) -> (u16, u32) {
        // The address was checked when the request was taken; memory never goes away.
        let _ = ram.write_obj(outcome.status, request.status);
        let elapsed = request.started.elapsed().as_micros();
        self.counters.busy_us.add(u64::try_from(elapsed).unwrap_or(u64::MAX));
        match (outcome.status, request.kind) {
            (STATUS_OK, request::READ) => {
                self.counters.reads.add(1);
                self.counters.bytes_read.add(outcome.written);
            }
            (STATUS_OK, request::WRITE) => self.counters.writes.add(1),
            (STATUS_OK, request::FLUSH) => self.counters.flushes.add(1),
            (STATUS_OK, _) => {}
            _ => self.counters.errors.add(1),
        }
        (request.head, u32::try_from(outcome.written + 1).unwrap_or(u32::MAX))
    }

    fn in_bounds(&self, request: &Request) -> bool {
        let len = request.data.len() + request.done;
        let sectors = len.div_ceil(SECTOR);
        len.is_multiple_of(SECTOR) && request.sector.checked_add(sectors).is_some_and(|end| end <= self.disk.sectors)
    }

    fn serve(&self, ram: &GuestRam, request: &mut Request) -> Outcome {
        let image = &self.disk.image;
        match request.kind {
            request::READ | request::WRITE if !self.in_bounds(request) => Outcome::failed(STATUS_ERROR),
            request::WRITE | request::DISCARD | request::WRITE_ZEROES if self.disk.read_only => {
                Outcome::failed(STATUS_ERROR)
            }
            request::READ => match image.read(ram, &mut request.data, request.sector * SECTOR + request.done) {
                Ok(count) => Outcome::read(request.done + count),
                Err(error) => self.failed("read", &error),
            },
            request::WRITE => match image.write(ram, &mut request.data, request.sector * SECTOR) {
                Ok(count) => {
                    self.counters.bytes_written.add(count);
                    Outcome::done()
                }
                Err(error) => self.failed("write", &error),
            },
            request::FLUSH if !self.disk.durable || self.disk.read_only => Outcome::done(),
            request::FLUSH => match image.flush() {
                Ok(()) => Outcome::done(),
                Err(error) => self.failed("flush", &error),
            },
            request::GET_ID => Outcome::read(request.data.write(ram, &self.disk.serial) as u64),
            request::DISCARD | request::WRITE_ZEROES => self.serve_ranges(ram, request),
            _ => Outcome::failed(STATUS_UNSUPPORTED),
        }
    }

    /// Discard and write-zeroes: a list of ranges as data (virtio 1.2, section 5.2.6.2).
    fn serve_ranges(&self, ram: &GuestRam, request: &mut Request) -> Outcome {
        const RANGE: u64 = 16;
        const UNMAP: u32 = 1;
        let discard = request.kind == request::DISCARD;
        let count = request.data.len() / RANGE;
        if count == 0 || count > u64::from(MAX_RANGES) || !request.data.len().is_multiple_of(RANGE) {
            return Outcome::failed(STATUS_ERROR);
        }
        for _ in 0..count {
            let (mut sector, mut sectors, mut flags) = ([0; 8], [0; 4], [0; 4]);
            let whole = request.data.take_start(ram, &mut sector)
                && request.data.take_start(ram, &mut sectors)
                && request.data.take_start(ram, &mut flags);
            if !whole {
                return Outcome::failed(STATUS_ERROR);
            }
            let (sector, sectors, flags) =
                (u64::from_le_bytes(sector), u32::from_le_bytes(sectors), u32::from_le_bytes(flags));
            if flags & !UNMAP != 0 || (discard && flags != 0) {
                return Outcome::failed(STATUS_UNSUPPORTED);
            }
            let fits = sector.checked_add(u64::from(sectors)).is_some_and(|end| end <= self.disk.sectors);
            if !fits || sectors > MAX_RANGE_SECTORS {
                return Outcome::failed(STATUS_ERROR);
            }
            let (offset, len) = (sector * SECTOR, u64::from(sectors) * SECTOR);
            let result = if discard {
                self.disk.image.discard(offset, len)
            } else {
                self.disk.image.write_zeroes(offset, len, flags & UNMAP != 0)
            };
            match result {
                Ok(()) => {}
                // A discard is a hint: a file system that cannot punch holes keeps the blocks.
                Err(error) if discard && error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return self.failed("discard", &error),
            }
        }
        Outcome::done()
    }

    fn failed(&self, what: &'static str, error: &io::Error) -> Outcome {
        // Full host disks would repeat this for every request.
        if self.counters.errors.get() < 8 {
            tracing::warn!(what, %error, "a disk request failed");
        }
        Outcome::failed(STATUS_ERROR)
    }
}

/// How a request ended.
struct Outcome {
    status: u8,
    /// Bytes written to the guest, without the status.
    written: u64,
}

impl Outcome {
    fn done() -> Outcome {
        Outcome { status: STATUS_OK, written: 0 }
    }

    fn read(written: u64) -> Outcome {
        Outcome { status: STATUS_OK, written }
    }

    fn failed(status: u8) -> Outcome {
        Outcome { status, written: 0 }
    }
}

/// Copies the header out of guest memory, once, and splits off the status byte.
fn parse(ram: &GuestRam, head: u16, chain: DescriptorChain<&GuestRam>) -> Result<Request, RingError> {
    let started = Instant::now();
    let (mut readable, mut writable) = (GuestBuffers::default(), GuestBuffers::default());
    for descriptor in chain {
        let buffers = if descriptor.is_write_only() { &mut writable } else { &mut readable };
        buffers.push(ram, descriptor.addr(), descriptor.len() as usize)?;
    }
    let too_short = RingError::TooShort(readable.len() + writable.len());
    let Some(status) = writable.pop_byte() else {
        return Err(too_short);
    };
    let (mut kind, mut reserved, mut sector) = ([0; 4], [0; 4], [0; 8]);
    let whole = readable.take_start(ram, &mut kind)
        && readable.take_start(ram, &mut reserved)
        && readable.take_start(ram, &mut sector);
    if !whole {
        return Err(too_short);
    }
    let kind = u32::from_le_bytes(kind);
    let to_guest = matches!(kind, request::READ | request::GET_ID);
    Ok(Request {
        head,
        kind,
        sector: u64::from_le_bytes(sector),
        data: if to_guest { writable } else { readable },
        status,
        started,
        done: 0,
    })
}

fn notify(queue: &mut Queue, active: &Activation) -> Result<(), virtio_queue::Error> {
    if queue.needs_notification(&active.ram)? {
        active.interrupt.signal_used();
    }
    Ok(())
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
