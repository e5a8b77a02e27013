//! Every unit file that Debian ships, read by muster-core and by the systemd of a booted machine: the values agree.
//!
//! systemd is asked over D-Bus. Nothing of what is shipped is started.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use muster_cluster::Cluster;
use muster_core::unit::specifier::Specifiers;
use muster_core::unit::{UnitFile, UnitFileError, UnitName, UnitNameError};

use reading::Reading;
use systemd::{Systemd, text};
use table::{How, TABLE};

#[path = "unit_files/reading.rs"]
mod reading;
#[path = "unit_files/systemd.rs"]
mod systemd;
#[path = "unit_files/table.rs"]
mod table;

/// Where Debian's packages put them; the two may be one.
const DIRECTORIES: [&str; 2] = ["/usr/lib/systemd/system", "/lib/systemd/system"];

/// What templates are tried with: `%I` is `x/y`, and yet it is a valid user name.
const INSTANCE: &str = "x-y";

/// With fewer files, or fewer values in them, something was overlooked: systemd alone ships more.
const LEAST_FILES: usize = 100;
const LEAST_VALUES: usize = 1000;

/// A unit file of Debian.
struct Shipped {
    /// The unit that is loaded from it: of a template, an instance.
    name: UnitName,
    path: PathBuf,
    file: Result<UnitFile, UnitFileError>,
}

/// All of them. The machine's root is an overlay of the host's: what is on the host is there too.
fn shipped() -> Result<Vec<Shipped>> {
    let mut all = BTreeMap::new();
    for directory in DIRECTORIES.into_iter().filter(|directory| Path::new(directory).exists()) {
        for entry in fs::read_dir(directory)? {
            let path = fs::canonicalize(directory)?.join(entry?.file_name());
            // A link to a unit is another name of it; a link to nothing masks one.
            let is_alias = path.is_symlink() && fs::read_link(&path)? != Path::new("/dev/null");
            if is_alias || path.is_dir() {
                continue;
            }
            let name = path.file_name().context("no file name")?.to_string_lossy().into_owned();
            let name = match UnitName::parse(&name) {
                Err(UnitNameError::NoDot | UnitNameError::InvalidType(_)) => continue,
                name => name.with_context(|| path.display().to_string())?,
            };
            let name = if name.is_template() { name.instance_of(INSTANCE)? } else { name };
            let file = UnitFile::parse(&fs::read(&path)?);
            all.insert(path.clone(), Shipped { name, path, file });
        }
    }
    Ok(all.into_values().collect())
}

/// What came out, over all files.
#[derive(Default)]
struct Report {
    files: usize,
    masked: usize,
    values: usize,
    keys: BTreeSet<String>,
    /// Why, and which keys.
    not_compared: BTreeMap<&'static str, BTreeSet<String>>,
    disagreements: Vec<String>,
}

impl Report {
    /// Compares all of one file; an error is a disagreement about the file as a whole.
    fn compare(&mut self, shipped: &Shipped, systemd: &Systemd, specifiers: Specifiers) -> Result<()> {
        let Shipped { name, path, file } = shipped;
        let properties = systemd.properties.get(name).context("systemd was not asked")?;
        let state = text(&properties["LoadState"]["data"]);
        let file = match file {
            Ok(file) if state == "loaded" => file,
            Err(UnitFileError::Empty) if state == "masked" => {
                self.masked += 1;
                return Ok(());
            }
            Ok(_) => bail!("core reads it, systemd says {state}: {}", properties["LoadError"]["data"]),
            Err(error) => bail!("core says: {error}; for systemd it is {state}"),
        };
        let fragment = text(&properties["FragmentPath"]["data"]);
        ensure!(fs::canonicalize(fragment)? == *path, "systemd has read {fragment} instead");

        self.files += 1;
        let reading = Reading { systemd, file, properties, specifiers };
        let mut keys: BTreeSet<(String, String)> =
            file.entries().map(|entry| (entry.section.into_owned(), entry.key.into_owned())).collect();
        let written = keys.clone();
        // What has no default must be empty for systemd too, where core finds nothing.
        for section in ["Unit", name.unit_type().section()] {
            let rows = TABLE.iter().filter(|row| row.0.contains(&section) && row.1.is_empty_by_default());
            keys.extend(rows.flat_map(|row| row.2).map(|key| (section.to_owned(), (*key).to_owned())));
        }
        for (section, key) in keys {
            let row = TABLE.iter().find(|row| row.0.contains(&&*section) && row.2.contains(&&*key));
            let shown = format!("[{section}] {key}=");
            let both = match row {
                None => Err("unknown to the table of this test"),
                Some((_, How::Not(why), _)) => Err(*why),
                Some((_, how, _)) => match reading.both(&section, &key, *how) {
                    Ok(both) => {
                        both.ok_or("a size with a unit, an IP address, or a file system that is mounted")
                    }
                    Err(error) => {
                        self.disagreements.push(format!("{}: {shown} {error:#}", path.display()));
                        continue;
                    }
                },
            };
            match both {
                Err(why) => _ = self.not_compared.entry(why).or_default().insert(shown),
                Ok((ours, theirs)) => {
                    if ours != theirs {
                        let file = path.display();
                        let disagreement = format!("{file}: {shown}\n  core    {ours}\n  systemd {theirs}");
                        self.disagreements.push(disagreement);
                    }
                    if written.contains(&(section, key)) {
                        self.values += ours.as_array().map_or(1, Vec::len);
                        self.keys.insert(shown);
                    }
                }
            }
        }
        Ok(())
    }
}

#[test]
fn core_reads_what_debian_ships_as_systemd_does() {
    let cluster = Cluster::builder().machines(1).no_daemons().up().unwrap();
    let machine = cluster.machine("m1").unwrap();
    let shipped = shipped().unwrap();
    let systemd = Systemd::ask(&machine, shipped.iter().map(|shipped| &shipped.name)).unwrap();
    let kernel = machine.exec(&["uname", "-r"]).unwrap().ok().unwrap();

    let mut report = Report::default();
    for shipped in &shipped {
        let specifiers = Specifiers::of(&shipped.name)
            .with('m', machine.machine_id())
            .with('b', machine.boot_id().unwrap().replace('-', ""))
            .with('H', machine.name())
            .with('v', kernel.trim());
        if let Err(error) = report.compare(shipped, &systemd, specifiers) {
            report.disagreements.push(format!("{}: {error:#}", shipped.path.display()));
        }
    }

    let Report { files, masked, values, keys, not_compared, disagreements } = report;
    println!("{files} files compared, {values} values of {} keys; {masked} files mask a unit", keys.len());
    for (why, keys) in not_compared {
        println!("not compared, {why}: {}", keys.into_iter().collect::<Vec<_>>().join(" "));
    }
    assert!(disagreements.is_empty(), "{} disagreements:\n{}", disagreements.len(), disagreements.join("\n"));
    assert!(files >= LEAST_FILES && values >= LEAST_VALUES, "only {files} files and {values} values");
}
