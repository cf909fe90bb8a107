//! Building and running one microVM.
//!
//! ```text
//!   Vmm::build ─▶ Vmm::run (this thread: vsock, entropy, end of the VM)
//!                   ├─ vcpu-N        one thread each, parked until run
//!                   └─ blk-N, blk-N-M  per disk: queue thread and workers
//!   VmmHandle: any thread. pause, resume, stop, statistics, vsock, console tail.
//! ```
//!
//! The order of set-up is the one that KVM is fastest with; see [`crate::kvm`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use vm_superio::Serial;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::acpi::{self, AcpiError, VirtioWindow};
use crate::boot::{self, BootError};
use crate::bus::{Bus, SerialInterrupt};
use crate::config::{ConfigError, DriveConfig, VmmConfig};
use crate::console::{Console, ConsoleTail};
use crate::cpuid::{self, Topology};
use crate::exit::{ExitReason, ExitSignal};
use crate::ioapic::Ioapic;
use crate::kernel::{self, KernelError};
use crate::kvm::{self, KvmError, KvmVm, call};
use crate::layout;
use crate::memory::{self, GuestRam, MemoryError};
use crate::sandbox::{self, SandboxError, ThreadJail, ThreadKind};
use crate::state::{self, VmState};
use crate::stats::{DriveCounters, ExitCounters, VmmStats};
use crate::vcpu::{self, Vcpu, VcpuControl, VcpuShared, Wanted};
use crate::virtio::block::{Block, Disk};
use crate::virtio::image::Image;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::virtio::rng::{Rng, RngShared};
use crate::virtio::vsock::{Vsock, VsockShared, VsockWake};
use crate::virtio::{VirtioDevice, lock};
use crate::vsock::{VsockConfig, VsockDevice, VsockError, VsockHandle};

/// A VM that could not be built or run.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// See the message.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file of the configuration.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// See the message.
    #[error("{} is {len} bytes long; a disk has at least 512", path.display())]
    EmptyDisk {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// See the message.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// See the message.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// See the message.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// See the message.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// See the message.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// See the message.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// See the message.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// See the message.
    #[error("cannot start the VM's threads: {0}")]
    Threads(io::Error),
    /// See the message.
    #[error("a device has an impossible queue size")]
    QueueSize,
}

/// A microVM that is ready to run.
pub struct Vmm {
    handle: VmmHandle,
    epoll: Epoll,
    wakes: Vec<Wake>,
    vcpus: Vec<JoinHandle<()>>,
    jail: Jail,
}

/// Steers a running VM and looks at it. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct VmmHandle {
    shared: Arc<Shared>,
}

struct Shared {
    control: Arc<VcpuControl>,
    bus: Arc<Bus>,
    exit: Arc<ExitSignal>,
    tail: ConsoleTail,
    drives: Vec<Arc<DriveCounters>>,
    rng: Option<Arc<RngShared>>,
    vsock: Option<(VsockHandle, Arc<VsockShared>)>,
    generation_event: EventFd,
    ram: GuestRam,
    started: OnceLock<Instant>,
    // Pause and resume one at a time.
    steering: Mutex<()>,
}

/// How the VM's threads enter their jails.
#[derive(Clone)]
struct Jail {
    threads: Arc<ThreadJail>,
    exit: Arc<ExitSignal>,
}

impl Jail {
    /// Returns what a thread runs first. False means that it must end: the guest must not meet a
    /// thread that is not jailed, so the VM ends as well.
    fn entry(&self, kind: ThreadKind) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let Jail { threads, exit } = self.clone();
        Arc::new(move || match threads.enter(kind) {
            Ok(()) => true,
            Err(error) => {
                exit.set(ExitReason::Failed { message: error.to_string() });
                false
            }
        })
    }
}

/// What the run loop does when a descriptor is readable.
enum Wake {
    Exit,
    Rng(Arc<EventFd>, Arc<RngShared>),
    VsockQueue(Arc<EventFd>, Arc<VsockShared>, VsockWake),
    VsockHost(Arc<VsockShared>),
}

impl Vmm {
    /// Builds the VM: memory, kernel, devices, vCPUs. Nothing of the guest runs yet.
    pub fn build(config: &VmmConfig) -> Result<Vmm, VmmError> {
        Vmm::build_with_console(config, None)
    }

    /// As [`Vmm::build`], with the console's output also written to `console`, a non-blocking
    /// pipe: what a full one does not take is dropped.
    ///
    /// A `File`, because vCPU threads may write but not send: a `UnixStream` would kill them.
    pub fn build_with_console(config: &VmmConfig, console: Option<File>) -> Result<Vmm, VmmError> {
        config.validate()?;
        // Everything that needs a path comes first.
        let files = Files::open(config)?;
        let kvm = kvm::open()?;
        let mem_size = u64::from(config.mem_mib) << 20;
        let ram = memory::allocate(mem_size)?;
        let vm = KvmVm::new(&kvm, &ram)?;

        let mut kernel_file = files.kernel;
        let kernel = kernel::load(&ram, &mut kernel_file)?;
        let initramfs = match &files.initramfs {
            Some(file) => Some(boot::load_initramfs(&ram, &kernel, file)?),
            None => None,
        };
        boot::write_boot_data(&ram, &kernel, &config.cmdline, initramfs, mem_size)?;

        let topology =
            Topology { vcpu_count: config.vcpu_count, tsc_deadline: vm.tsc_deadline(), masks: &config.cpu.cpuid_masks };
        let mut vcpus = Vec::new();
        for id in 0..config.vcpu_count {
            let fd = vm.create_vcpu(id)?;
            let table = cpuid::for_vcpu(vm.supported_cpuid(), &topology, id);
            call("KVM_SET_CPUID2", fd.set_cpuid2(&table))?;
            vcpu::set_boot_msrs(&fd)?;
            if id == 0 {
                let mut sregs = call("KVM_GET_SREGS", fd.get_sregs())?;
                boot::entry_sregs(&kernel, &mut sregs);
                call("KVM_SET_SREGS", fd.set_sregs(&sregs))?;
                call("KVM_SET_REGS", fd.set_regs(&boot::entry_regs(&kernel)))?;
            }
            vcpus.push(Vcpu { id, fd });
        }

        let exit = Arc::new(ExitSignal::new().map_err(VmmError::Threads)?);
        let jail = Jail { threads: Arc::new(ThreadJail::new(&config.jail)?), exit: exit.clone() };
        let epoll = Epoll::new().map_err(VmmError::Threads)?;
        let mut builder = DeviceBuilder { vm: &vm, ram: &ram, windows: Vec::new(), wakes: Vec::new() };
        let drives = builder.add_drives(files.drives, &jail)?;
        let vsock = builder.add_vsock(config)?;
        let rng = if config.rng { Some(builder.add_rng()?) } else { None };
        let DeviceBuilder { windows, mut wakes, .. } = builder;

        acpi::write(&ram, &acpi::build(config.vcpu_count, &window_places(windows.len())))?;
        write_generation_id(&ram)?;

        let console = Console::new(files.console, config.console.limit, console);
        let tail = console.tail();
        let serial = Serial::new(SerialInterrupt(vm.irqfd(layout::SERIAL_GSI)?), console);
        let bus = Arc::new(Bus {
            windows,
            serial: Mutex::new(serial),
            ioapic: Mutex::new(Ioapic::default()),
            vm: vm.clone(),
            exit: exit.clone(),
            tail: tail.clone(),
            counters: Arc::new(ExitCounters::default()),
        });
        wakes.push(Wake::Exit);
        for (token, wake) in (0u64..).zip(&wakes) {
            let event = EpollEvent::new(EventSet::IN, token);
            let fd = wake.as_raw_fd(&exit);
            epoll.ctl(ControlOperation::Add, fd, event).map_err(VmmError::Threads)?;
        }

        vcpu::install_kick_handler().map_err(VmmError::Threads)?;
        let control = Arc::new(VcpuControl::default());
        let shared = VcpuShared {
            bus: bus.clone(),
            control: control.clone(),
            ram: ram.clone(),
            setup: jail.entry(ThreadKind::Vcpu),
            msrs: Arc::new(state::msr_list(&kvm, &config.cpu.extra_msrs)?),
        };
        let generation_event = vm.irqfd(layout::EVENT_GSI)?;
        let handle = VmmHandle {
            shared: Arc::new(Shared {
                control,
                bus,
                exit,
                tail,
                drives,
                rng,
                vsock,
                generation_event,
                ram,
                started: OnceLock::new(),
                steering: Mutex::new(()),
            }),
        };
        let mut vmm = Vmm { handle, epoll, wakes, vcpus: Vec::new(), jail };
        for vcpu in vcpus {
            // A failure ends the threads started so far: dropping `vmm` does.
            vmm.vcpus.push(vcpu.start(shared.clone()).map_err(VmmError::Threads)?);
        }
        sandbox::enter_process()?;
        Ok(vmm)
    }

    /// Returns a handle to the VM.
    pub fn handle(&self) -> VmmHandle {
        self.handle.clone()
    }

    /// Runs the VM in this thread until it ends, and frees what it used.
    ///
    /// The calling thread gets a seccomp filter and should end soon after.
    pub fn run(self) -> ExitReason {
        let shared = &self.handle.shared;
        // A failure is the end of the VM, which the loop sees.
        (self.jail.entry(ThreadKind::Loop))();
        let _ = shared.started.set(Instant::now());
        {
            let _steering = lock(&shared.steering);
            // A stop may have come before the start.
            if shared.exit.reason().is_none() {
                shared.control.set_wanted(Wanted::Running);
            }
        }
        let mut events = [EpollEvent::default(); 16];
        loop {
            if let Some(reason) = shared.exit.reason() {
                return reason;
            }
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return ExitReason::Failed { message: format!("epoll failed: {error}") };
                }
            };
            for event in events.iter().take(count) {
                let wake = usize::try_from(event.data()).ok().and_then(|token| self.wakes.get(token));
                if let Some(wake) = wake {
                    wake.serve();
                }
            }
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let shared = &self.handle.shared;
        shared.control.set_wanted(Wanted::Ended);
        for thread in self.vcpus.drain(..) {
            let _ = thread.join();
        }
        // Completes what is under way; a durable disk was flushed when the guest asked for it.
        for window in &shared.bus.windows {
            window.shut_down();
        }
        if let Some((_, vsock)) = &shared.vsock {
            vsock.finish_reset();
        }
        shared.exit.set(ExitReason::Stopped);
    }
}

impl Wake {
    fn as_raw_fd(&self, exit: &ExitSignal) -> i32 {
        match self {
            Wake::Exit => exit.event().as_raw_fd(),
            Wake::Rng(event, _) | Wake::VsockQueue(event, ..) => event.as_raw_fd(),
            Wake::VsockHost(shared) => shared.as_raw_fd(),
        }
    }

    fn serve(&self) {
        match self {
            // The loop looks at the reason.
            Wake::Exit => {}
            Wake::Rng(event, shared) => {
                let _ = event.read();
                shared.serve();
            }
            Wake::VsockQueue(event, shared, wake) => {
                let _ = event.read();
                shared.serve(*wake);
            }
            Wake::VsockHost(shared) => shared.serve(VsockWake::Host),
        }
    }
}

impl VmmHandle {
    /// Returns the door to the guest's vsock ports.
    pub fn vsock(&self) -> Option<VsockHandle> {
        self.shared.vsock.as_ref().map(|(handle, _)| handle.clone())
    }

    /// Stops all vCPUs between two instructions and waits for requests under way.
    pub fn pause(&self) {
        let _steering = lock(&self.shared.steering);
        self.shared.control.set_wanted(Wanted::Paused);
        for window in &self.shared.bus.windows {
            window.drain();
        }
    }

    /// Lets the vCPUs run on.
    pub fn resume(&self) {
        let _steering = lock(&self.shared.steering);
        self.shared.control.set_wanted(Wanted::Running);
    }

    /// Returns whether the VM is paused.
    pub fn is_paused(&self) -> bool {
        self.shared.control.wanted() == Wanted::Paused
    }

    /// Ends the VM as if its power were cut: the guest is not asked. [`Vmm::run`] returns.
    ///
    /// A clean shutdown goes through the guest's agent; it ends in [`ExitReason::PowerOff`].
    pub fn stop(&self) {
        self.shared.exit.set(ExitReason::Stopped);
    }

    /// Returns why the VM ended, once it has.
    pub fn exit_reason(&self) -> Option<ExitReason> {
        self.shared.exit.reason()
    }

    /// Returns the descriptor that becomes readable when the VM has ended.
    pub fn exit_event(&self) -> std::os::fd::BorrowedFd<'_> {
        self.shared.exit.as_fd()
    }

    /// Returns the console's last output.
    pub fn console_tail(&self) -> String {
        self.shared.tail.text()
    }

    /// Returns the VM's counters.
    pub fn stats(&self) -> VmmStats {
        let shared = &self.shared;
        let exits = &shared.bus.counters;
        let uptime = shared.started.get().map_or(0, |started| started.elapsed().as_millis());
        VmmStats {
            uptime_ms: u64::try_from(uptime).unwrap_or(u64::MAX),
            io_in_exits: exits.io_in.get(),
            io_out_exits: exits.io_out.get(),
            mmio_read_exits: exits.mmio_read.get(),
            mmio_write_exits: exits.mmio_write.get(),
            kick_exits: exits.kicks.get(),
            other_exits: exits.other.get(),
            unclaimed_accesses: exits.unclaimed.get(),
            console_bytes: shared.tail.total(),
            entropy_bytes: shared.rng.as_ref().map_or(0, |rng| rng.bytes.get()),
            rss_kib: rss_kib(),
            drives: shared.drives.iter().map(|drive| drive.snapshot()).collect(),
        }
    }

    /// Saves everything but memory and disks. The VM must be paused; otherwise there are no vCPUs
    /// in the result.
    pub fn save(&self) -> Result<VmState, KvmError> {
        let shared = &self.shared;
        let _steering = lock(&shared.steering);
        Ok(VmState {
            version: state::STATE_VERSION,
            vcpus: shared.control.save()?,
            ioapic: lock(&shared.bus.ioapic).clone(),
            devices: shared.bus.windows.iter().map(|window| window.save()).collect(),
            vsock: shared.vsock.as_ref().map(|(_, device)| device.save()),
        })
    }

    /// Gives the guest a new generation id and tells it so, as after it was cloned.
    pub fn renew_generation_id(&self) -> Result<(), VmmError> {
        write_generation_id(&self.shared.ram)?;
        // Fails only when the counter would overflow: the line is pending then anyway.
        let _ = self.shared.generation_event.write(1);
        Ok(())
    }
}

impl std::fmt::Debug for VmmHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmmHandle").field("exit", &self.exit_reason()).finish_non_exhaustive()
    }
}

/// Every file of a configuration, open.
struct Files {
    kernel: File,
    initramfs: Option<File>,
    drives: Vec<Disk>,
    console: Option<File>,
}

impl Files {
    fn open(config: &VmmConfig) -> Result<Files, VmmError> {
        let named = |path: &Path, result: io::Result<File>| {
            result.map_err(|source| VmmError::Open { path: path.to_owned(), source })
        };
        let read = |path: &PathBuf| named(path, File::open(path));
        let console = match &config.console.path {
            Some(path) => {
                let open = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
                Some(named(path, open)?)
            }
            None => None,
        };
        Ok(Files {
            kernel: read(&config.kernel.path)?,
            initramfs: config.initramfs.as_ref().map(read).transpose()?,
            drives: config.drives.iter().map(open_drive).collect::<Result<_, _>>()?,
            console,
        })
    }
}

fn open_drive(drive: &DriveConfig) -> Result<Disk, VmmError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| VmmError::Open { path, source }
    };
    let file = OpenOptions::new().read(true).write(!drive.read_only).open(&drive.path).map_err(failed(&drive.path))?;
    let image = match &drive.base {
        None => Image::raw(file),
        Some(base) => {
            let lower = File::open(base).map_err(failed(base))?;
            Image::over(file, lower).map_err(failed(&drive.path))?
        }
    };
    let len = image.byte_len().map_err(failed(&drive.path))?;
    let sectors = len / 512;
    if sectors == 0 {
        return Err(VmmError::EmptyDisk { path: drive.path.clone(), len });
    }
    let mut serial = [0; 20];
    for (to, from) in serial.iter_mut().zip(drive.serial.bytes()) {
        *to = from;
    }
    Ok(Disk { image, sectors, read_only: drive.read_only, durable: drive.durable, serial })
}

/// Puts devices into windows, one after the other.
struct DeviceBuilder<'a> {
    vm: &'a Arc<KvmVm>,
    ram: &'a GuestRam,
    windows: Vec<Arc<MmioTransport>>,
    wakes: Vec<Wake>,
}

impl DeviceBuilder<'_> {
    fn add_drives(&mut self, disks: Vec<Disk>, jail: &Jail) -> Result<Vec<Arc<DriveCounters>>, VmmError> {
        let mut all = Vec::new();
        for (index, disk) in disks.into_iter().enumerate() {
            let counters = Arc::new(DriveCounters::default());
            // Blocking: the disk's thread waits in a read of it.
            let event = Arc::new(EventFd::new(libc::EFD_CLOEXEC).map_err(VmmError::Threads)?);
            let setup = jail.entry(ThreadKind::Block);
            let block = Block::new(&format!("blk-{index}"), disk, event.clone(), counters.clone(), setup)
                .map_err(VmmError::Threads)?;
            self.add(Box::new(block), vec![event])?;
            all.push(counters);
        }
        Ok(all)
    }

    fn add_vsock(&mut self, config: &VmmConfig) -> Result<Option<(VsockHandle, Arc<VsockShared>)>, VmmError> {
        let Some(config) = &config.vsock else {
            return Ok(None);
        };
        let (device, handle) = VsockDevice::new(VsockConfig::new(u64::from(config.guest_cid)))?;
        let events = crate::virtio::queue_events(3).map_err(VmmError::Threads)?;
        let Some(wake) = events.first().cloned() else {
            return Err(VmmError::QueueSize);
        };
        let (transport, shared) = Vsock::new(device, wake);
        let kinds = [VsockWake::RxKick, VsockWake::TxKick, VsockWake::EventKick];
        for (event, kind) in events.iter().zip(kinds) {
            self.wakes.push(Wake::VsockQueue(event.clone(), shared.clone(), kind));
        }
        self.wakes.push(Wake::VsockHost(shared.clone()));
        self.add(Box::new(transport), events)?;
        Ok(Some((handle, shared)))
    }

    fn add_rng(&mut self) -> Result<Arc<RngShared>, VmmError> {
        let event = Arc::new(EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(VmmError::Threads)?);
        let (rng, shared) = Rng::new(event.clone());
        self.wakes.push(Wake::Rng(event.clone(), shared.clone()));
        self.add(Box::new(rng), vec![event])?;
        Ok(shared)
    }

    fn add(&mut self, device: Box<dyn VirtioDevice>, events: Vec<Arc<EventFd>>) -> Result<(), VmmError> {
        let place = window_place(self.windows.len());
        let interrupt = Arc::new(Interrupt::new(self.vm.irqfd(place.gsi)?));
        for (queue, event) in (0u32..).zip(&events) {
            self.vm.ioeventfd(event, u64::from(place.base) + QUEUE_NOTIFY, queue)?;
        }
        let transport = MmioTransport::new(device, self.ram.clone(), interrupt, events).ok_or(VmmError::QueueSize)?;
        self.windows.push(Arc::new(transport));
        Ok(())
    }
}

fn window_place(index: usize) -> VirtioWindow {
    // At most MAX_DRIVES + 2 windows.
    let index = index as u32;
    VirtioWindow { base: layout::MMIO as u32 + index * layout::MMIO_SIZE as u32, gsi: layout::VIRTIO_GSI + index }
}

fn window_places(count: usize) -> Vec<VirtioWindow> {
    (0..count).map(window_place).collect()
}

fn write_generation_id(ram: &GuestRam) -> Result<(), VmmError> {
    use vm_memory::{Bytes, GuestAddress};
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| VmmError::Threads(error.into()))?;
    ram.write_slice(&id, GuestAddress(layout::VM_GENERATION_ID)).map_err(|error| VmmError::Memory(error.into()))
}

/// Reads the process's resident memory; zero where the jail has taken `/proc` away.
fn rss_kib() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/self/statm") else {
        return 0;
    };
    let pages: Option<u64> = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    pages.unwrap_or(0) * (memory::PAGE_SIZE / 1024)
}
