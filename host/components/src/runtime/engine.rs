//! The process's one wasmtime engine, and the ticker that interrupts components that compute too long.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use wasmtime::{Config, Engine};

/// How often running components are interrupted to look at their CPU time.
const TICK: Duration = Duration::from_millis(10);

/// Ticks without a call until the ticker sleeps. It goes on for a moment, so that calls in a row do not wake it each.
const IDLE_TICKS: u32 = 20;

/// Stack of a component's own frames.
const MAX_WASM_STACK: usize = 512 << 10;

/// Stack of a component's fiber: its own frames and those of the host functions it calls.
const ASYNC_STACK: usize = 2 << 20;

/// The engine and its ticker.
pub(crate) struct Runtime {
    pub(crate) engine: Engine,
    ticker: Arc<Ticker>,
}

#[derive(Debug, Default)]
struct Ticker {
    calls: AtomicUsize,
    asleep: AtomicBool,
    thread: OnceLock<std::thread::Thread>,
}

/// Keeps the ticker going.
pub(crate) struct Ticking(Arc<Ticker>);

/// Returns the process's runtime, made on first use.
///
/// # Errors
/// When this host cannot run compiled components at all.
pub(crate) fn runtime() -> Result<&'static Runtime, String> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    RUNTIME.get_or_init(Runtime::start).as_ref().map_err(Clone::clone)
}

impl Runtime {
    fn start() -> Result<Runtime, String> {
        let mut config = Config::new();
        config.wasm_component_model(true);
        config.epoch_interruption(true);
        config.max_wasm_stack(MAX_WASM_STACK);
        config.async_stack_size(ASYNC_STACK);
        let engine = Engine::new(&config).map_err(|error| format!("wasmtime cannot start: {error:#}"))?;
        let ticker = Arc::new(Ticker::default());
        let (for_thread, ticks) = (Arc::clone(&ticker), engine.clone());
        let thread = std::thread::Builder::new()
            .name("pyro-ticker".to_owned())
            .spawn(move || for_thread.run(&ticks))
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        // Nobody else sets it: the ticker was made above.
        let _ = ticker.thread.set(thread.thread().clone());
        Ok(Runtime { engine, ticker })
    }

    /// Makes the ticker go until the guard is dropped.
    pub(crate) fn tick(&self) -> Ticking {
        self.ticker.calls.fetch_add(1, Ordering::SeqCst);
        if self.ticker.asleep.load(Ordering::SeqCst)
            && let Some(thread) = self.ticker.thread.get()
        {
            thread.unpark();
        }
        Ticking(Arc::clone(&self.ticker))
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Ticker {
    fn run(&self, engine: &Engine) {
        let mut idle = 0;
        loop {
            if self.calls.load(Ordering::SeqCst) > 0 {
                idle = 0;
            } else if idle < IDLE_TICKS {
                idle += 1;
            } else {
                // Ordered so that a call either sees `asleep` and wakes this thread, or is seen here.
                self.asleep.store(true, Ordering::SeqCst);
                if self.calls.load(Ordering::SeqCst) == 0 {
                    std::thread::park();
                }
                self.asleep.store(false, Ordering::SeqCst);
                continue;
            }
            std::thread::sleep(TICK);
            engine.increment_epoch();
        }
    }
}
