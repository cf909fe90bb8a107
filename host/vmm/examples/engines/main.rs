//! Our VMM beside Firecracker and QEMU, on the same KVM with the same guest. `cargo xtask bench engine` runs it in the lab.
//!
//! ```text
//! engines KERNEL INITRAMFS ROOTFS MICROVM FIRECRACKER [ROUNDS]
//! ```
//!
//! The engines take turns in every round, each time in another order, so that a host that gets slower is slower for all and
//! nobody always follows the same one. A first round is not counted: a software CPU translates the guest's kernel then. Each
//! has the kernel arguments of its product or its documentation. It prints a table in Markdown.
//! QEMU's software CPU with nested SVM now and then leaves a guest standing still, whoever runs it: that one is ended, its
//! measurements are taken again, and the table says how often that was.
//! Memory is what the process has beyond the guest's RAM: its private pages, and all its resident pages.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its figures")]

#[path = "../../tests/lab/agent.rs"]
mod agent;
mod vmms;

use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::Instant;

use vmms::{Files, Guest, KINDS, Kind, MEM_MIB};

/// Rounds of which the disk and vsock figures are taken: they change less than boots do.
const IO_ROUNDS: usize = 5;
const EXECS: usize = 20;
/// Guests in a row that may fail before the benchmark does.
const ATTEMPTS: usize = 3;
/// Bytes through vsock, each way.
const STREAM: usize = 32 << 20;

/// Prints bytes per second and operations per second of the second disk, past the guest's page cache.
const DISK: &str = r#"
import mmap, os, random, time
disk = os.open("/dev/vdb", os.O_RDWR | os.O_DIRECT)
size = 64 << 20
large, small = mmap.mmap(-1, 1 << 20), mmap.mmap(-1, 4096)
random.seed(1)
places = [random.randrange(size // 4096) * 4096 for _ in range(1000)]
def take(op, buffer, places):
    begun = time.monotonic()
    for place in places:
        assert op(disk, [buffer], place) == len(buffer)
    return len(places) / (time.monotonic() - begun)
blocks = range(0, size, 1 << 20)
take(os.pwritev, large, blocks)
print(take(os.preadv, large, blocks), take(os.pwritev, large, blocks), take(os.preadv, small, places),
      take(os.pwritev, small, places))
"#;

/// Sends (`s`) or takes (`r`) a stream of that many bytes for every connection.
const STREAMER: &str = r#"
import socket
server = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
server.bind((socket.VMADDR_CID_ANY, 2000))
server.listen(4)
print("listening", flush=True)
buffer = bytearray(256 * 1024)
while True:
    peer, _ = server.accept()
    if peer.recv(1) == b"s":
        for _ in range(SIZE // len(buffer)):
            peer.sendall(buffer)
    else:
        left = SIZE
        while left:
            left -= peer.recv_into(buffer)
        peer.sendall(b"k")
    peer.close()
"#;

/// What was measured of one VMM.
#[derive(Default)]
struct Figures {
    ready_ms: Vec<f64>,
    private_mib: Vec<f64>,
    resident_mib: Vec<f64>,
    exec_ms: Vec<f64>,
    read_mib: Vec<f64>,
    write_mib: Vec<f64>,
    random_reads: Vec<f64>,
    random_writes: Vec<f64>,
    to_host_mib: Vec<f64>,
    to_guest_mib: Vec<f64>,
    /// Guests that did not get to the end.
    failed: usize,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut path = || PathBuf::from(arguments.next().expect("KERNEL INITRAMFS ROOTFS MICROVM FIRECRACKER [ROUNDS]"));
    let scratch = tempfile::NamedTempFile::new().expect("a disk");
    scratch.as_file().set_len(64 << 20).expect("a disk");
    let files = Files {
        kernel: path(),
        initramfs: path(),
        rootfs: path(),
        microvm: path(),
        firecracker: path(),
        scratch: scratch.path().to_owned(),
    };
    let rounds = arguments.next().map_or(10, |rounds| rounds.parse().expect("a number of rounds"));
    let mut all = KINDS.map(|kind| (kind, Figures::default()));
    for kind in KINDS {
        measure_again(kind, &files, &mut Figures::default(), false);
    }
    for round in 0..rounds {
        for index in order(round) {
            let (kind, figures) = &mut all[index];
            measure_again(*kind, &files, figures, round < IO_ROUNDS);
        }
        let boots = all.each_ref().map(|(_, figures)| figures.ready_ms.last().map_or(0.0, |ms| ms.round()));
        eprintln!("round {} of {rounds}: ready after {boots:?} ms", round + 1);
    }
    table(&all);
}

/// Returns the order of a round: everybody starts in turn, and every other time it goes backwards.
fn order(round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..KINDS.len()).map(|index| (index + round / 2) % KINDS.len()).collect();
    if !round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

/// Measures one guest, and another one when that fails.
fn measure_again(kind: Kind, files: &Files, figures: &mut Figures, with_io: bool) {
    for attempt in 1.. {
        let mut taken = Figures::default();
        let result = catch_unwind(AssertUnwindSafe(|| measure(kind, files, &mut taken, with_io)));
        match result {
            Ok(()) => return figures.add(taken),
            Err(_) if attempt < ATTEMPTS => figures.failed += 1,
            Err(reason) => resume_unwind(reason),
        }
    }
}

impl Figures {
    fn add(&mut self, other: Figures) {
        self.ready_ms.extend(other.ready_ms);
        self.private_mib.extend(other.private_mib);
        self.resident_mib.extend(other.resident_mib);
        self.exec_ms.extend(other.exec_ms);
        self.read_mib.extend(other.read_mib);
        self.write_mib.extend(other.write_mib);
        self.random_reads.extend(other.random_reads);
        self.random_writes.extend(other.random_writes);
        self.to_host_mib.extend(other.to_host_mib);
        self.to_guest_mib.extend(other.to_guest_mib);
    }
}

fn measure(kind: Kind, files: &Files, figures: &mut Figures, with_io: bool) {
    let guest = Guest::boot(kind, files, 1);
    figures.ready_ms.push(guest.ready.as_secs_f64() * 1e3);
    if kind == Kind::FirecrackerOurArguments {
        // The rest is the same whatever the kernel was told.
        return;
    }
    guest.exec(&["/bin/true"]);
    for _ in 0..EXECS {
        let begun = Instant::now();
        assert_eq!(guest.exec(&["/bin/true"]).code, Some(0));
        figures.exec_ms.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let (private, resident) = memory_beyond_the_guests(guest.pid());
    figures.private_mib.push(private);
    figures.resident_mib.push(resident);
    if !with_io {
        return;
    }
    let disk = guest.exec(&["/usr/bin/python3", "-c", DISK]).text();
    let numbers: Vec<f64> = disk.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [read, write, random_reads, random_writes] = numbers[..] else { panic!("{kind:?}: {disk}") };
    figures.read_mib.push(read);
    figures.write_mib.push(write);
    figures.random_reads.push(random_reads);
    figures.random_writes.push(random_writes);

    let streamer = STREAMER.replace("SIZE", &STREAM.to_string());
    let _running = guest.start_until(&["/usr/bin/python3", "-c", &streamer], "listening");
    let mut buffer = vec![0; 256 * 1024];
    let rate = |begun: Instant| (STREAM >> 20) as f64 / begun.elapsed().as_secs_f64();
    let mut stream = guest.connect(2000);
    let begun = Instant::now();
    stream.write_all(b"s").expect("the guest");
    let mut left = STREAM;
    while left > 0 {
        left -= stream.read(&mut buffer).expect("the guest");
    }
    figures.to_host_mib.push(rate(begun));
    let mut stream = guest.connect(2000);
    let begun = Instant::now();
    stream.write_all(b"r").expect("the guest");
    for _ in 0..STREAM / buffer.len() {
        stream.write_all(&buffer).expect("the guest");
    }
    stream.read_exact(&mut [0]).expect("the guest's word that all arrived");
    figures.to_guest_mib.push(rate(begun));
}

/// One mapping of a process.
struct Mapping {
    start: u64,
    end: u64,
    private_kib: u64,
    resident_kib: u64,
}

/// Returns the private and the resident memory of a process in MiB, its guest's RAM left out: the mappings, one or
/// several side by side, that are exactly as long as the guest's RAM.
fn memory_beyond_the_guests(pid: u32) -> (f64, f64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("the process");
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let word = line.split_whitespace().next().unwrap_or_default();
        let range = word
            .split_once('-')
            .and_then(|(start, end)| Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?)));
        if let Some((start, end)) = range {
            mappings.push(Mapping { start, end, private_kib: 0, resident_kib: 0 });
            continue;
        }
        let Some(last) = mappings.last_mut() else { continue };
        let kib = || line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
        match word {
            "Rss:" => last.resident_kib = kib(),
            "Private_Clean:" | "Private_Dirty:" => last.private_kib += kib(),
            _ => {}
        }
    }
    let ram = u64::from(MEM_MIB) << 20;
    let tiles = |from: usize| {
        let (mut end, mut resident) = (mappings[from].start, 0);
        for (index, mapping) in mappings.iter().enumerate().skip(from) {
            if mapping.start != end {
                return None;
            }
            end = mapping.end;
            resident += mapping.resident_kib;
            if end - mappings[from].start >= ram {
                return (end - mappings[from].start == ram).then_some((resident, from, index));
            }
        }
        None
    };
    // Address space that an allocator has reserved can be as long, but nothing is in it.
    let (_, from, to) = (0..mappings.len()).filter_map(tiles).max().expect("the guest's RAM");
    let rest = mappings.iter().enumerate().filter(|(index, _)| !(from..=to).contains(index));
    let (mut private, mut resident) = (0, 0);
    for (_, mapping) in rest {
        private += mapping.private_kib;
        resident += mapping.resident_kib;
    }
    (private as f64 / 1024.0, resident as f64 / 1024.0)
}

fn table(all: &[(Kind, Figures); 4]) {
    type Row = (&'static str, fn(&Figures) -> &Vec<f64>);
    let rows: [Row; 10] = [
        ("process start to agent ready, ms", |f| &f.ready_ms),
        ("memory beyond guest RAM, private, MiB", |f| &f.private_mib),
        ("memory beyond guest RAM, resident, MiB", |f| &f.resident_mib),
        ("command `true` and back, ms", |f| &f.exec_ms),
        ("disk, 1 MiB reads in a row, MiB/s", |f| &f.read_mib),
        ("disk, 1 MiB writes in a row, MiB/s", |f| &f.write_mib),
        ("disk, random 4 KiB reads, 1/s", |f| &f.random_reads),
        ("disk, random 4 KiB writes, 1/s", |f| &f.random_writes),
        ("vsock, guest to host, MiB/s", |f| &f.to_host_mib),
        ("vsock, host to guest, MiB/s", |f| &f.to_guest_mib),
    ];
    println!(
        "| p50 (min to max) | pyro-kvm | Firecracker | Firecracker, our arguments | QEMU microvm | pyro / Firecracker |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for (name, row) in rows {
        let cells: Vec<(f64, String)> = all.iter().map(|(_, figures)| summary(row(figures))).collect();
        let ratio = cells[0].0 / cells[1].0;
        let shown: Vec<&str> = cells.iter().map(|(_, shown)| shown.as_str()).collect();
        println!("| {name} | {} | {ratio:.2} |", shown.join(" | "));
    }
    let failed = all.each_ref().map(|(kind, figures)| format!("{kind:?} {}", figures.failed));
    println!("\nGuests that did not get to the end and were replaced: {}.", failed.join(", "));
}

fn summary(values: &[f64]) -> (f64, String) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else { return (f64::NAN, "-".to_owned()) };
    let p50 = sorted[sorted.len() / 2];
    let show = |value: f64| if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    (p50, format!("{} ({} to {})", show(p50), show(*min), show(*max)))
}
