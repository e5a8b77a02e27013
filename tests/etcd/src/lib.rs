//! A real etcd on loopback, for tests and measurements: members that can be killed, stopped and started again.
//!
//! Everything here panics where it cannot do what it is for, as tests do.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use muster_etcd::{Client, Config, Tls, pb};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// How long a request of a test's own may take.
pub const WAIT: Duration = Duration::from_secs(10);

/// An etcd cluster. It ends with this.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    tls: Option<Certificates>,
    directory: TempDir,
}

#[derive(Debug)]
struct Member {
    child: Option<Child>,
    arguments: Vec<String>,
    endpoint: String,
    log: PathBuf,
}

/// An authority, and what it has signed: files in PEM.
#[derive(Debug)]
pub struct Certificates {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The certificate that it has signed.
    pub cert: PathBuf,
    /// The key of that.
    pub key: PathBuf,
}

impl Certificates {
    /// A new authority, with a certificate for loopback addresses, for servers and clients.
    pub fn new(directory: &Path, name: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut authority = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        authority.distinguished_name.push(rcgen::DnType::CommonName, format!("{name} authority"));
        let authority = rcgen::CertifiedIssuer::self_signed(authority, key).expect("an authority");
        let mut own = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).expect("parameters");
        own.distinguished_name.push(rcgen::DnType::CommonName, name);
        own.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let own_key = rcgen::KeyPair::generate().expect("a key");
        let own = own.signed_by(&own_key, &authority).expect("a certificate");
        let write = |file: &str, text: String| {
            let path = directory.join(format!("{name}-{file}.pem"));
            std::fs::write(&path, text).expect("written");
            path
        };
        Self {
            ca: write("ca", authority.pem()),
            cert: write("cert", own.pem()),
            key: write("key", own_key.serialize_pem()),
        }
    }

    /// Trusts the authority, and has its certificate.
    pub fn tls(&self) -> Tls {
        let read = |path: &PathBuf| std::fs::read(path).expect("read");
        Tls { ca: read(&self.ca), identity: Some((read(&self.cert), read(&self.key))) }
    }
}

impl Etcd {
    /// So many members, with these arguments each; ready to be used.
    pub fn start(members: usize, arguments: &[&str]) -> Self {
        Self::start_in(temporary(), members, arguments)
    }

    /// The same, with their data in this directory.
    pub fn start_in(directory: TempDir, members: usize, arguments: &[&str]) -> Self {
        Self::start_with(directory, members, arguments, false)
    }

    /// One member that speaks TLS only, to clients whose certificate its authority has signed.
    pub fn start_with_tls() -> Self {
        Self::start_with(temporary(), 1, &[], true)
    }

    fn start_with(directory: TempDir, count: usize, arguments: &[&str], tls: bool) -> Self {
        let tls = tls.then(|| Certificates::new(directory.path(), "etcd"));
        let scheme = if tls.is_some() { "https" } else { "http" };
        // Held together, so that no two are the same.
        let ports: Vec<TcpListener> =
            (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let port = |index: usize| ports[index].local_addr().expect("an address").port();
        let cluster: Vec<_> =
            (0..count).map(|n| format!("m{n}=http://127.0.0.1:{}", port(count + n))).collect();
        let members = (0..count).map(|n| {
            let (client, peer) = (format!("{scheme}://127.0.0.1:{}", port(n)), port(count + n));
            let log = directory.path().join(format!("m{n}.log"));
            let mut all = vec![
                format!("--name=m{n}"),
                format!("--data-dir={}", directory.path().join(format!("m{n}")).display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-cluster={}", cluster.join(",")),
                "--logger=zap".to_owned(),
                "--log-level=warn".to_owned(),
            ];
            if let Some(tls) = &tls {
                all.push(format!("--trusted-ca-file={}", tls.ca.display()));
                all.push(format!("--cert-file={}", tls.cert.display()));
                all.push(format!("--key-file={}", tls.key.display()));
                all.push("--client-cert-auth".to_owned());
            }
            all.extend(arguments.iter().map(ToString::to_string));
            Member { child: None, arguments: all, endpoint: client, log }
        });
        let members = members.collect();
        drop(ports);
        let mut etcd = Self { members, tls, directory };
        (0..count).for_each(|n| etcd.start_member(n));
        etcd.wait_until_it_answers();
        etcd
    }

    /// Starts a member that is not there.
    pub fn start_member(&mut self, n: usize) {
        let member = &mut self.members[n];
        let log = std::fs::File::options().create(true).append(true).open(&member.log).expect("a log");
        let child = Command::new("etcd")
            .args(&member.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd can be run (Debian's package etcd-server)");
        member.child = Some(child);
    }

    /// Kills a member.
    pub fn kill(&mut self, n: usize) {
        if let Some(mut child) = self.members[n].child.take() {
            child.kill().expect("killed");
            child.wait().expect("waited for");
        }
    }

    /// Copies what a member that does not run has on its disk.
    pub fn copy_data(&self, n: usize) {
        self.copy(&format!("m{n}"), &format!("copy-{n}"));
    }

    /// Puts that in the place of what it has by now.
    pub fn put_data_back(&self, n: usize) {
        self.copy(&format!("copy-{n}"), &format!("m{n}"));
    }

    fn copy(&self, from: &str, to: &str) {
        let [from, to] = [from, to].map(|name| self.directory.path().join(name));
        if to.exists() {
            std::fs::remove_dir_all(&to).expect("removed");
        }
        let status = Command::new("cp").arg("-a").args([&from, &to]).status().expect("cp can be run");
        assert!(status.success(), "cp -a {} {}: {status}", from.display(), to.display());
    }

    /// Sends a signal to a member.
    pub fn signal(&self, n: usize, signal: Signal) {
        let child = self.members[n].child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("signalled");
    }

    /// The members' URLs for clients.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.endpoint.clone()).collect()
    }

    /// How a client gets there.
    pub fn config(&self) -> Config {
        Config { endpoints: self.endpoints(), tls: self.tls.as_ref().map(Certificates::tls), user: None }
    }

    /// With what it speaks TLS.
    pub fn certificates(&self) -> &Certificates {
        self.tls.as_ref().expect("it speaks TLS")
    }

    /// Runs etcdctl; gives what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoints().join(",")))
            .args(arguments)
            .output()
            .expect("etcdctl can be run (Debian's package etcd-client)");
        assert!(
            output.status.success(),
            "etcdctl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs etcdctl until what this gives is dropped.
    pub fn background(&self, arguments: &[&str]) -> Background {
        let child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoints().join(",")))
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("etcdctl can be run");
        Background(child)
    }

    /// Has it forget all revisions but the last.
    pub fn compact(&self) {
        let last = self.ctl(&["get", "x", "-w", "json"]);
        let last: serde_json::Value = serde_json::from_str(&last).expect("JSON");
        self.ctl(&["compact", &last["header"]["revision"].to_string()]);
    }

    /// Whether each member that answers has the others with it.
    pub fn is_healthy(&self) -> bool {
        let endpoints = format!("--endpoints={}", self.endpoints().join(","));
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args([&*endpoints, "--command-timeout=1s", "endpoint", "health"])
            .output()
            .expect("etcdctl can be run");
        output.status.success()
    }

    /// Waits until each member has the others with it.
    pub fn wait_until_healthy(&self) {
        wait_for("all members", || self.is_healthy().then_some(()), || self.logs());
    }

    /// Waits until requests are answered.
    pub fn wait_until_it_answers(&self) {
        let runtime = runtime();
        let client = runtime.block_on(async { Client::new(self.config()) }).expect("a client");
        let ask = || {
            let range = pb::RangeRequest { key: "x".into(), ..Default::default() };
            runtime.block_on(client.range(range, WAIT)).ok()
        };
        wait_for("etcd", ask, || self.logs());
    }

    fn logs(&self) -> String {
        let logs = self.members.iter().map(|member| std::fs::read_to_string(&member.log).unwrap_or_default());
        logs.collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            // One that is stopped dies of this as well.
            if let Some(mut child) = member.child.take() {
                child.kill().ok();
                child.wait().ok();
            }
        }
    }
}

/// A program that ends with this.
#[derive(Debug)]
pub struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A runtime with a thread of its own, as schedulers have one.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

/// Waits until `done` gives something.
///
/// # Panics
/// After half a minute, with what `state` shows.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>, state: impl Fn() -> String) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}: {}", state());
        std::thread::yield_now();
    }
}
