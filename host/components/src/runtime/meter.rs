//! The two clocks of a call: CPU time used, and wall clock left.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// CPU time of one call, summed over the polls of its future.
///
/// A tick of the epoch is only the occasion to look at it: a call that waits for its turn on a busy host, or for a
/// microVM, uses none.
#[derive(Debug, Default)]
pub(crate) struct CpuMeter {
    used_ns: AtomicU64,
    poll_started_ns: AtomicU64,
}

impl CpuMeter {
    /// CPU time used until now. Call it on the thread that polls.
    pub(crate) fn used(&self) -> Duration {
        let running = thread_cpu_ns().saturating_sub(self.poll_started_ns.load(Ordering::Relaxed));
        Duration::from_nanos(self.used_ns.load(Ordering::Relaxed).saturating_add(running))
    }
}

/// A future whose polls are charged to a meter.
pub(crate) struct Metered<F> {
    pub(crate) meter: Arc<CpuMeter>,
    pub(crate) inner: Pin<Box<F>>,
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let started = thread_cpu_ns();
        self.meter.poll_started_ns.store(started, Ordering::Relaxed);
        let result = self.inner.as_mut().poll(context);
        self.meter.used_ns.fetch_add(thread_cpu_ns().saturating_sub(started), Ordering::Relaxed);
        result
    }
}

fn thread_cpu_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// Wall clock of one call. It stands still while the call waits for a microVM, because those waits have limits of
/// their own: the boot limit and each command's timeout.
#[derive(Debug)]
pub(crate) struct CallClock {
    state: Mutex<ClockState>,
    resumed: Notify,
}

#[derive(Debug)]
struct ClockState {
    left: Duration,
    /// When it was last set going; none while it stands.
    running_since: Option<Instant>,
}

impl CallClock {
    /// Starts a clock with `limit` left.
    pub(crate) fn start(limit: Duration) -> CallClock {
        let state = ClockState { left: limit, running_since: Some(Instant::now()) };
        CallClock { state: Mutex::new(state), resumed: Notify::new() }
    }

    /// Time left; zero when it is over.
    pub(crate) fn left(&self) -> Duration {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left.saturating_sub(state.running_since.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    /// Stops the clock until the guard is dropped.
    pub(crate) fn pause(self: &Arc<CallClock>) -> ClockPause {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = state.running_since.take() {
            state.left = state.left.saturating_sub(since.elapsed());
        }
        ClockPause(Arc::clone(self))
    }

    /// Returns when no time is left.
    pub(crate) async fn expired(&self) {
        loop {
            let standing = self.state.lock().unwrap_or_else(PoisonError::into_inner).running_since.is_none();
            if standing {
                // `resumed` keeps a permit, so a clock that goes on before this line is not missed.
                self.resumed.notified().await;
                continue;
            }
            let left = self.left();
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// A standing clock.
pub(crate) struct ClockPause(Arc<CallClock>);

impl Drop for ClockPause {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).running_since = Some(Instant::now());
        self.0.resumed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_paused_clock_does_not_run_out() {
        let clock = Arc::new(CallClock::start(Duration::from_millis(80)));
        let pause = clock.pause();
        let waited = tokio::time::timeout(Duration::from_millis(200), clock.expired()).await;
        assert!(waited.is_err(), "it ran while it stood");
        drop(pause);
        let started = Instant::now();
        clock.expired().await;
        assert!(started.elapsed() >= Duration::from_millis(60));
        assert!(clock.left().is_zero());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn only_work_is_charged() {
        let meter = Arc::new(CpuMeter::default());
        let inner = Box::pin(async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let started = Instant::now();
            let mut sum = 0u64;
            while started.elapsed() < Duration::from_millis(30) {
                sum = std::hint::black_box(sum.wrapping_add(1));
            }
        });
        Metered { meter: Arc::clone(&meter), inner }.await;
        let used = Duration::from_nanos(meter.used_ns.load(Ordering::Relaxed));
        assert!(used < Duration::from_millis(60), "{used:?}");
        assert!(used > Duration::from_millis(2), "{used:?}");
    }
}
