//! What several tests need.

#![allow(dead_code, reason = "no test uses all of it")]

pub mod agent;
pub mod etcd;
pub mod proxy;

use std::path::Path;
use std::process::Command;

use muster_scheduler::config::{Config, Etcd as EtcdConfig};

/// Of a scheduler on loopback that keeps its state in this etcd, with directories of its own here.
pub fn on_etcd(endpoints: Vec<String>, directory: &Path, name: &str) -> Config {
    let [state_dir, runtime_dir] = ["state", "run"].map(|kind| directory.join(format!("{name}-{kind}")));
    Config {
        listen: "127.0.0.1:0".parse().expect("an address"),
        state_dir,
        runtime_dir: Some(runtime_dir),
        etcd: Some(EtcdConfig {
            endpoints,
            prefix: "/muster/".to_owned(),
            ca: None,
            cert: None,
            key: None,
            user: None,
            password_file: None,
        }),
        ..Config::default()
    }
}

/// Set in a test that runs in mounts of its own.
const INSIDE: &str = "MUSTER_TEST_MOUNTS";

/// Runs the calling test again in a mount namespace of its own, so that its mounts end with it. Gives true there, and
/// false to the caller once that has passed.
pub fn in_own_mounts(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    assert!(rustix::process::geteuid().is_root(), "this test mounts a small file system: run it as root");
    // A directory cannot be removed while something is mounted on it: we do it, here where nothing is.
    let directory = tempfile::tempdir().expect("a directory");
    let program = std::env::current_exe().expect("the test's own program");
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .env("TMPDIR", directory.path())
        .status()
        .expect("unshare (of util-linux) can be run");
    assert!(status.success(), "the test failed in its own mounts: {status}");
    false
}

/// Mounts a tmpfs of this many KiB.
pub fn mount_tmpfs(directory: &Path, kib: u64) {
    let size = format!("size={kib}k,mode=700");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "muster-test"]).arg(directory));
}

/// Mounts an ext4 of about this many KiB, whose disk is the file `image`.
pub fn mount_ext4(image: &Path, directory: &Path, kib: u64) {
    let file = std::fs::File::create(image).expect("an image");
    file.set_len(kib * 1024).expect("an image");
    run(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-O", "^has_journal"]).arg(image));
    run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(directory));
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
