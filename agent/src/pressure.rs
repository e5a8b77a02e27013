//! How short the machine is of CPU, memory and disk: the kernel's pressure stall information.

use std::fs;
use std::path::Path;
use std::time::Duration;

use muster_core::agent::Input;
use muster_core::machine::Pressure;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

/// Where the kernel tells it. The files are not there without `CONFIG_PSI`, and cannot be read with `psi=0`.
const DIRECTORY: &str = "/proc/pressure";
/// How often it is read: about once for each heartbeat.
const INTERVAL: Duration = Duration::from_secs(1);

/// Tells the agent again and again, as long as it takes it. No heartbeat waits for this: each carries what was told last.
pub(crate) async fn watch(inputs: mpsc::Sender<Input>) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        // The kernel may take its time when the machine is short of all.
        let Ok(pressure) = tokio::task::spawn_blocking(|| read(Path::new(DIRECTORY))).await else { return };
        if inputs.send(Input::Pressure(pressure)).await.is_err() {
            return;
        }
    }
}

fn read(directory: &Path) -> Pressure {
    let of = |name| some_avg10(&fs::read_to_string(directory.join(name)).ok()?);
    Pressure { cpu: of("cpu"), memory: of("memory"), io: of("io") }
}

/// Reads `some avg10=1.53 avg60=0.87 avg300=0.27 total=1234567`, in hundredths of a percent.
fn some_avg10(text: &str) -> Option<u32> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let percent = some.split(' ').find_map(|field| field.strip_prefix("avg10="))?;
    let (whole, hundredths) = percent.split_once('.')?;
    let digits = hundredths.len() == 2 && hundredths.bytes().all(|byte| byte.is_ascii_digit());
    let hundredths = if digits { hundredths.parse::<u32>().ok()? } else { return None };
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(hundredths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_and_its_absence_too() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()), Pressure::default());
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write(
            "cpu",
            "some avg10=1.53 avg60=0.87 avg300=0.27 total=12345\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=0\n",
        );
        write("memory", "full avg10=1.00\nsome avg10=100.00 avg60=0.00 avg300=0.00 total=0\n");
        write("io", "nonsense\n");
        assert_eq!(read(directory.path()), Pressure { cpu: Some(153), memory: Some(10_000), io: None });
    }

    #[test]
    fn what_is_no_number_is_no_pressure() {
        for text in [
            "",
            "some",
            "some avg10=",
            "some avg10=1",
            "some avg10=1.5",
            "some avg10=1.+5",
            "some avg10=x.00",
        ] {
            assert_eq!(some_avg10(text), None, "{text:?}");
        }
        assert_eq!(some_avg10("some avg10=99999999999.00"), None);
        assert_eq!(some_avg10("some avg10=0.05 avg60=0.00"), Some(5));
    }
}
