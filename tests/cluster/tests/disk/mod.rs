//! What is to be so of full disks on both kinds of machine.

use muster_cluster::{Cluster, Machine};

/// On two machines.
pub fn is_full_until_it_is_cleared(cluster: &Cluster) {
    let (m1, m2) = (cluster.machine("m1").unwrap(), cluster.machine("m2").unwrap());
    let write = |machine: &Machine<'_>, path: &str| {
        machine.exec(&["sh", "-c", "head -c 64K /dev/zero >\"$1\"", "write", path]).unwrap()
    };
    let assert_full = |path: &str| {
        let output = write(&m1, path);
        assert!(output.stderr.contains("No space left on device"), "{path}: {output}");
    };
    m1.clear().unwrap();
    m1.fill("/var/lib").unwrap();
    assert_full("/var/new");
    assert_full("/etc/new");
    assert!(write(&m1, "/run/new").success());
    assert!(write(&m2, "/var/new").success());
    m1.kill().unwrap();
    assert!(m1.clear().unwrap_err().to_string().contains("m1 is off"));
    m1.boot().unwrap();
    assert_full("/var/new");
    m1.fill("/run").unwrap();
    m1.fill("/var").unwrap();
    assert_full("/run/new");
    m1.clear().unwrap();
    assert!(write(&m1, "/run/new").success() && write(&m1, "/var/new").success());
    assert!(m1.fill("/no/such").unwrap_err().to_string().contains("/no/such"));
    m1.clear().unwrap();
}
