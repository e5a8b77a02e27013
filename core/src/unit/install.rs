//! `[Install]`: the units along with which systemd starts this one (`systemd.unit(5)`).
//!
//! Muster enables a unit as `systemctl enable --runtime` does, on the machines that have it, and only for units that start
//! and stop while a machine is up: nothing of the cluster's is to be started by the boot of a machine, or by an
//! operator who goes to another target.

use std::collections::BTreeSet;

use super::specifier::{Specifiers, expand};
use super::words::plain;
use super::{UnitFile, UnitName, UnitType};

/// A unit that starts this one along with itself: the name of a directory beside its file, such as `web.service.wants`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// The unit.
    pub by: UnitName,
    /// Whether it cannot be started without this one.
    pub required: bool,
}

impl Wanted {
    /// The name of the directory in which systemd looks for this unit's link.
    pub fn directory(&self) -> String {
        format!("{}.{}", self.by, if self.required { "requires" } else { "wants" })
    }
}

/// The settings of `[Install]` that have an effect.
pub(super) const KEYS: [(&str, bool); 2] = [("WantedBy", false), ("RequiredBy", true)];

/// What `WantedBy=` and `RequiredBy=` of the unit's file name, without what is no unit, and without systemd's own
/// targets.
pub fn wanted(name: &UnitName, file: &UnitFile) -> BTreeSet<Wanted> {
    if name.is_template() {
        return BTreeSet::new();
    }
    let specifiers = Specifiers::of(name);
    let mut found = BTreeSet::new();
    for (key, required) in KEYS {
        for value in file.values("Install", key) {
            let names = plain(&value).filter_map(|word| {
                let by = UnitName::parse(&expand(word, &specifiers).ok()?).ok()?;
                (!by.is_template() && !is_systemds(&by)).then_some(Wanted { by, required })
            });
            found.extend(names);
        }
    }
    found
}

/// Whether it is a target that systemd itself has for the phases of a machine (`systemd.special(7)`, systemd 252).
fn is_systemds(name: &UnitName) -> bool {
    const SPECIAL: &str = "basic bluetooth cryptsetup cryptsetup-pre ctrl-alt-del default emergency exit factory-reset final \
         first-boot-complete getty getty-pre graphical halt hibernate hybrid-sleep initrd initrd-fs initrd-root-device \
         initrd-root-fs initrd-switch-root initrd-usr-fs integritysetup integritysetup-pre kbrequest kexec local-fs \
         local-fs-pre multi-user network network-online network-pre nss-lookup nss-user-lookup paths poweroff printer \
         reboot remote-cryptsetup remote-fs remote-fs-pre remote-veritysetup rescue rpcbind runlevel2 runlevel3 runlevel4 \
         runlevel5 shutdown sigpwr sleep slices smartcard sockets soft-reboot sound suspend suspend-then-hibernate swap \
         sysinit system-update system-update-pre time-set time-sync timers umount usb-gadget veritysetup veritysetup-pre";
    name.unit_type() == UnitType::Target && SPECIAL.split_whitespace().any(|special| special == name.stem())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> Vec<String> {
        let file = UnitFile::parse(text.as_bytes()).unwrap();
        let found = wanted(&UnitName::parse(name).unwrap(), &file);
        found.iter().map(Wanted::directory).collect()
    }

    #[test]
    fn units_are_named_as_systemd_reads_them() {
        let text = "[Install]\nWantedBy=a.service b.socket\nRequiredBy=%p@%i.service\nWantedBy=c.target\n";
        assert_eq!(
            found("x@1.service", text),
            ["a.service.wants", "b.socket.wants", "c.target.wants", "x@1.service.requires"]
        );
        assert_eq!(found("x@.service", text), [""; 0]);
        assert_eq!(
            found("x.service", "[Install]\nWantedBy=a.service\nWantedBy=\nWantedBy=b.service\n"),
            ["b.service.wants"]
        );
        assert_eq!(found("x.service", "[Unit]\nWantedBy=a.service\n"), [""; 0]);
    }

    #[test]
    fn what_a_boot_starts_and_what_is_no_unit_is_left_out() {
        let text = "[Install]\nWantedBy=multi-user.target graphical.target nonsense ../up.service t@.service %q.service\n";
        assert_eq!(found("x.service", text), [""; 0]);
    }
}
