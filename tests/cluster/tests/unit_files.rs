//! Every unit file that Debian ships, read by muster-core and by the systemd of a booted machine: the values agree.
//!
//! systemd is asked over D-Bus for the properties of each unit, and for its dump, the one place that tells dependencies
//! that stand in the file from those that it adds by itself. Nothing of what is shipped is started.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use muster_cluster::{Cluster, Machine};
use muster_core::unit::specifier::{Specifiers, expand};
use muster_core::unit::words::{Escapes, plain, split_exec, split_with};
use muster_core::unit::{UnitFile, UnitFileError, UnitName, UnitNameError};
use serde_json::{Value, json};

use How::{
    Choice, Command, Condition, Counted, Dependency, Directory, EnvironmentFile, Listen, Not, Number, Pairs,
    Path as OnePath, PathSpec, Switch, Text, Triggered, Unmounted, Variables, Words,
};

/// Under the two names that it has.
const DIRECTORIES: [&str; 2] = ["/usr/lib/systemd/system", "/lib/systemd/system"];

/// What templates are tried with: `%I` is `x/y`, and yet it is a valid user name.
const INSTANCE: &str = "x-y";

/// systemd alone ships more than this.
const LEAST_FILES: usize = 100;
/// Values that are compared in so many files.
const LEAST_VALUES: usize = 1000;

/// How a key of a unit file becomes what systemd says.
#[derive(Clone, Copy)]
enum How {
    /// The last value, specifiers replaced.
    Text,
    /// The same, a path in its shortest form, `/run` for `/var/run`.
    OnePath,
    /// The same, where `-` (may be missing) is `!` on the bus.
    Directory,
    /// A word; yes and no may be written as for [`Switch`].
    Choice,
    /// A truth value.
    Switch,
    /// A number, when it is written as nothing but digits.
    Number,
    /// All words, specifiers replaced, in order.
    Words(Escapes),
    /// All words in any order: systemd sorts them.
    Sorted(Escapes),
    /// Words in pairs, among others that systemd adds: the separator, and the second one where there is none (else it
    /// is the first again).
    Pairs(char, Option<&'static str>),
    /// `NAME=VALUE`, of which the last of each name counts.
    Variables,
    /// A file, which may be missing after `-`.
    EnvironmentFile,
    /// Units, under their main names, or paths: exactly those that systemd has from the file.
    Dependency(Escapes),
    /// A unit that this one starts: among `Triggers`.
    Triggered,
    /// `Condition…=` and `Assert…=`.
    Condition,
    /// `Exec…=`: program, arguments, flags.
    Command,
    /// `Listen…=` of a socket.
    Listen,
    /// The paths of a path unit.
    PathSpec,
    /// The times of a timer. systemd parses them and says what is left: only their number is compared.
    Counted,
    /// Text about a mount; what is mounted has the kernel's.
    Unmounted,
    /// Nothing to compare, and why.
    Not(&'static str),
}

const UNIT: &[&str] = &["Unit"];
const SERVICE: &[&str] = &["Service"];
const SOCKET: &[&str] = &["Socket"];
/// The types that run programs.
const RUN: &[&str] = &["Service", "Socket", "Mount", "Swap"];
const ANY: &[&str] = &[];

const TYPED: &str = "a time, size, set of flags or the like: the bus has what systemd's parser for it made of it";
const NOT_ON_BUS: &str = "the bus has no such property";

/// Sections, how their keys are compared, and which keys; the property has the name of the key unless [`How`] says else.
#[rustfmt::skip]
const TABLE: &[(&[&str], How, &[&str])] = &[
    (UNIT, Text, &["Description", "JobTimeoutRebootArgument", "RebootArgument"]),
    (UNIT, Words(Escapes::Keep), &["Documentation"]),
    (UNIT, Dependency(Escapes::Keep), &[
        "After", "Before", "BindsTo", "Conflicts", "JoinsNamespaceOf", "OnFailure", "OnSuccess", "PartOf",
        "PropagatesReloadTo", "PropagatesStopTo", "ReloadPropagatedFrom", "Requires", "Requisite",
        "StopPropagatedFrom", "Upholds", "Wants",
    ]),
    (UNIT, Dependency(Escapes::Drop), &["RequiresMountsFor"]),
    (UNIT, Choice, &[
        "CollectMode", "FailureAction", "JobTimeoutAction", "OnFailureJobMode", "OnSuccessJobMode",
        "StartLimitAction", "SuccessAction",
    ]),
    (UNIT, Switch, &[
        "AllowIsolate", "DefaultDependencies", "IgnoreOnIsolate", "RefuseManualStart", "RefuseManualStop",
        "StopWhenUnneeded",
    ]),
    (UNIT, Condition, &[
        "AssertPathExists", "ConditionACPower", "ConditionArchitecture", "ConditionCapability",
        "ConditionControlGroupController", "ConditionCredential", "ConditionDirectoryNotEmpty",
        "ConditionFileIsExecutable", "ConditionFileNotEmpty", "ConditionFirstBoot", "ConditionHost",
        "ConditionKernelCommandLine", "ConditionKernelVersion", "ConditionNeedsUpdate", "ConditionPathExists",
        "ConditionPathExistsGlob", "ConditionPathIsDirectory", "ConditionPathIsMountPoint",
        "ConditionPathIsReadWrite", "ConditionPathIsSymbolicLink", "ConditionSecurity", "ConditionUser",
        "ConditionVirtualization",
    ]),
    (UNIT, Number, &["StartLimitBurst"]),
    (UNIT, Not(TYPED), &["JobRunningTimeoutSec", "JobTimeoutSec", "StartLimitInterval", "StartLimitIntervalSec"]),

    (SERVICE, Command, &[
        "ExecCondition", "ExecReload", "ExecStart", "ExecStartPost", "ExecStartPre", "ExecStop", "ExecStopPost",
    ]),
    (SERVICE, Choice, &["ExitType", "NotifyAccess", "OOMPolicy", "Restart", "Type"]),
    (SERVICE, Text, &["BusName"]),
    (SERVICE, OnePath, &["PIDFile"]),
    (SERVICE, Switch, &["GuessMainPID", "RemainAfterExit", "RootDirectoryStartOnly"]),
    (SERVICE, Number, &["FileDescriptorStoreMax"]),
    (SERVICE, Triggered, &[]),
    (SERVICE, Not("`Wants` and `TriggeredBy` have it, but the other side writes there too"), &["Sockets"]),
    (SERVICE, Not(TYPED), &["RestartForceExitStatus", "RestartPreventExitStatus", "SuccessExitStatus"]),

    (SOCKET, Command, &["ExecStartPost", "ExecStartPre", "ExecStopPost", "ExecStopPre"]),
    (SOCKET, Listen, &[
        "ListenDatagram", "ListenFIFO", "ListenMessageQueue", "ListenNetlink", "ListenSequentialPacket",
        "ListenSpecial", "ListenStream", "ListenUSBFunction",
    ]),
    (SOCKET, Text, &["FileDescriptorName", "SocketGroup", "SocketUser"]),
    (SOCKET, Words(Escapes::Keep), &["Symlinks"]),
    (SOCKET, Choice, &["Timestamping"]),
    (SOCKET, Triggered, &["Service"]),
    (SOCKET, Switch, &[
        "Accept", "FlushPending", "FreeBind", "KeepAlive", "NoDelay", "PassCredentials", "PassPacketInfo",
        "PassSecurity", "RemoveOnStop", "ReusePort", "Transparent", "Writable",
    ]),
    (SOCKET, Number, &["Backlog", "MaxConnections", "MaxConnectionsPerSource", "Priority"]),
    (SOCKET, Not(TYPED), &["DirectoryMode", "ReceiveBuffer", "SendBuffer", "SocketMode"]),

    (&["Timer"], Counted, &[
        "OnActiveSec", "OnBootSec", "OnCalendar", "OnStartupSec", "OnUnitActiveSec", "OnUnitInactiveSec",
    ]),
    (&["Timer"], Text, &["Unit"]),
    (&["Timer"], Switch, &["FixedRandomDelay", "Persistent", "RemainAfterElapse", "WakeSystem"]),
    (&["Timer"], Not(TYPED), &["AccuracySec", "RandomizedDelaySec"]),
    (&["Path"], PathSpec, &["DirectoryNotEmpty", "PathChanged", "PathExists", "PathExistsGlob", "PathModified"]),
    (&["Path"], Text, &["Unit"]),
    (&["Path"], Switch, &["MakeDirectory"]),
    (&["Mount", "Automount"], OnePath, &["Where"]),
    (&["Mount"], Unmounted, &["Options", "Type", "What"]),

    (RUN, Text, &[
        "Group", "PAMName", "SyslogIdentifier", "User", "UtmpIdentifier",
    ]),
    (RUN, OnePath, &["RootDirectory", "TTYPath"]),
    (RUN, Directory, &["WorkingDirectory"]),
    (RUN, Choice, &[
        "DevicePolicy", "KeyringMode", "KillMode", "ProcSubset", "ProtectHome", "ProtectProc", "ProtectSystem",
        "RuntimeDirectoryPreserve", "StandardError", "StandardInput", "StandardOutput", "UtmpMode",
    ]),
    (&["Service", "Socket", "Mount", "Swap", "Slice", "Scope"], Text, &["Slice"]),
    (RUN, Variables, &["Environment"]),
    (RUN, EnvironmentFile, &["EnvironmentFile"]),
    (RUN, Words(Escapes::Decode), &["PassEnvironment", "UnsetEnvironment"]),
    (RUN, Words(Escapes::Keep), &["SupplementaryGroups"]),
    (RUN, Words(Escapes::Drop), &[
        "ExecPaths", "InaccessiblePaths", "NoExecPaths", "ReadOnlyPaths", "ReadWritePaths", "SystemCallArchitectures",
    ]),
    (RUN, Words(Escapes::Keep), &[
        "CacheDirectory", "ConfigurationDirectory", "LogsDirectory", "RuntimeDirectory", "StateDirectory",
    ]),
    (RUN, Pairs(':', None), &["LoadCredential", "LoadCredentialEncrypted"]),
    (RUN, Pairs(' ', Some("rwm")), &["DeviceAllow"]),
    (RUN, Switch, &[
        "Delegate", "DynamicUser", "IgnoreSIGPIPE", "LockPersonality", "MemoryDenyWriteExecute", "NoNewPrivileges",
        "PrivateDevices", "PrivateIPC", "PrivateMounts", "PrivateNetwork", "PrivateTmp", "PrivateUsers",
        "ProtectClock", "ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules",
        "ProtectKernelTunables", "RemoveIPC", "RestrictRealtime", "RestrictSUIDSGID", "SendSIGHUP", "SendSIGKILL",
        "SyslogLevelPrefix", "TTYReset", "TTYVHangup", "TTYVTDisallocate",
    ]),
    (RUN, Number, &["IOSchedulingPriority", "LimitNOFILE", "Nice", "OOMScoreAdjust", "TasksMax"]),
    (RUN, Not(TYPED), &[
        "AmbientCapabilities", "CPUSchedulingPolicy", "CapabilityBoundingSet", "IOSchedulingClass", "IPAddressDeny",
        "IPAddressAllow", "KillSignal", "LimitCORE", "LimitMEMLOCK", "LimitNPROC", "LogsDirectoryMode", "MountFlags",
        "RestartKillSignal", "RestartSec", "RestrictAddressFamilies", "RestrictNamespaces", "RuntimeDirectoryMode",
        "RuntimeMaxSec", "StateDirectoryMode", "SystemCallErrorNumber", "SystemCallFilter", "TimeoutSec",
        "TimeoutStartSec", "TimeoutStopSec", "UMask", "WatchdogSec",
    ]),
    (&["Install"], Not("for `systemctl enable`: the manager does not read it"), &[]),
];
