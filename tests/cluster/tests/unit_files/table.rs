//! What is compared, and how.

use muster_core::unit::words::Escapes;

use How::{
    Among, AmongPaths, Choice, Command, Condition, Counted, Credential, Dependency, Device, Directory,
    EnvironmentFile, Listen, Not, Number, PathName, PathSpec, RunPath, Switch, Text, Unmounted, Variables,
    WordSet, Words,
};

/// How a key of a unit file becomes what systemd says.
#[derive(Clone, Copy)]
pub(crate) enum How {
    /// The last value, specifiers replaced.
    Text,
    /// The same, a path in its shortest form.
    PathName,
    /// The same, where `/run` is put for `/var/run`.
    RunPath,
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
    /// The same, which systemd sorts.
    WordSet(Escapes),
    /// A name and, after a `:`, where to find it, which is the name itself where nothing else is said.
    Credential,
    /// A device and, after a blank, what may be done with it, which is all where nothing else is said; among others that
    /// systemd adds.
    Device,
    /// `NAME=VALUE`, of which the last of each name counts.
    Variables,
    /// A file in its shortest form, which may be missing after `-`.
    EnvironmentFile,
    /// Units, under their main names: exactly those that systemd has from the file.
    Dependency,
    /// Units that are, among others, in that property.
    Among(&'static str),
    /// Paths, among others that follow from other keys.
    AmongPaths,
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

impl How {
    /// Whether systemd has nothing where the file says nothing.
    pub(crate) fn is_empty_by_default(self) -> bool {
        matches!(
            self,
            Command
                | Condition
                | Counted
                | Credential
                | Dependency
                | EnvironmentFile
                | Listen
                | PathSpec
                | Variables
        )
    }
}

const UNIT: &[&str] = &["Unit"];
const SERVICE: &[&str] = &["Service"];
const SOCKET: &[&str] = &["Socket"];
/// The types that run programs.
const RUN: &[&str] = &["Service", "Socket", "Mount", "Swap"];

const TYPED: &str = "a time, size, signal, set of flags …, of which the bus has what systemd's parser made";

/// Sections, how their keys are compared, and which keys. The property has the name of the key unless [`How`] says else.
#[rustfmt::skip]
pub(crate) const TABLE: &[(&[&str], How, &[&str])] = &[
    (UNIT, Text, &["Description", "JobTimeoutRebootArgument", "RebootArgument"]),
    (UNIT, Words(Escapes::Keep), &["Documentation"]),
    (UNIT, Dependency, &[
        "After", "Before", "BindsTo", "Conflicts", "JoinsNamespaceOf", "OnFailure", "OnSuccess", "PartOf",
        "PropagatesReloadTo", "PropagatesStopTo", "ReloadPropagatedFrom", "Requires", "Requisite",
        "StopPropagatedFrom", "Upholds", "Wants",
    ]),
    (UNIT, AmongPaths, &["RequiresMountsFor"]),
    (UNIT, Choice, &["CollectMode", "JobTimeoutAction", "OnFailureJobMode", "OnSuccessJobMode", "SuccessAction"]),
    // Older files have these in [Service].
    (&["Unit", "Service"], Choice, &["FailureAction", "StartLimitAction"]),
    (&["Unit", "Service"], Number, &["StartLimitBurst"]),
    (&["Unit", "Service"], Not(TYPED), &["StartLimitInterval", "StartLimitIntervalSec"]),
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
    (UNIT, Not(TYPED), &["JobRunningTimeoutSec", "JobTimeoutSec"]),

    (SERVICE, Command, &[
        "ExecCondition", "ExecReload", "ExecStart", "ExecStartPost", "ExecStartPre", "ExecStop", "ExecStopPost",
    ]),
    (SERVICE, Choice, &["ExitType", "NotifyAccess", "OOMPolicy", "Restart", "Type"]),
    (SERVICE, Text, &["BusName"]),
    (SERVICE, RunPath, &["PIDFile"]),
    (SERVICE, Switch, &["GuessMainPID", "RemainAfterExit", "RootDirectoryStartOnly"]),
    (SERVICE, Number, &["FileDescriptorStoreMax"]),
    (SERVICE, Among("TriggeredBy"), &["Sockets"]),
    (SERVICE, Not(TYPED), &["RestartForceExitStatus", "RestartPreventExitStatus", "SuccessExitStatus"]),

    (SOCKET, Command, &["ExecStartPost", "ExecStartPre", "ExecStopPost", "ExecStopPre"]),
    (SOCKET, Listen, &[
        "ListenDatagram", "ListenFIFO", "ListenMessageQueue", "ListenNetlink", "ListenSequentialPacket",
        "ListenSpecial", "ListenStream", "ListenUSBFunction",
    ]),
    (SOCKET, Text, &["FileDescriptorName", "SocketGroup", "SocketUser"]),
    (SOCKET, Words(Escapes::Keep), &["Symlinks"]),
    (SOCKET, Choice, &["Timestamping"]),
    (SOCKET, Among("Triggers"), &["Service"]),
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
    (&["Mount", "Automount"], PathName, &["Where"]),
    (&["Mount"], Unmounted, &["Options", "Type", "What"]),

    (RUN, Text, &["Group", "PAMName", "SyslogIdentifier", "User", "UtmpIdentifier"]),
    (RUN, PathName, &["RootDirectory", "TTYPath"]),
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
    (RUN, WordSet(Escapes::Keep), &[
        "CacheDirectory", "ConfigurationDirectory", "LogsDirectory", "RuntimeDirectory", "StateDirectory",
    ]),
    (RUN, Credential, &["LoadCredential", "LoadCredentialEncrypted"]),
    (RUN, Device, &["DeviceAllow"]),
    (RUN, Switch, &[
        "DynamicUser", "IgnoreSIGPIPE", "LockPersonality", "MemoryDenyWriteExecute", "NoNewPrivileges",
        "PrivateDevices", "PrivateIPC", "PrivateMounts", "PrivateNetwork", "PrivateTmp", "PrivateUsers",
        "ProtectClock", "ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules",
        "ProtectKernelTunables", "RemoveIPC", "RestrictRealtime", "RestrictSUIDSGID", "SendSIGHUP", "SendSIGKILL",
        "SyslogLevelPrefix", "TTYReset", "TTYVHangup", "TTYVTDisallocate",
    ]),
    (RUN, Number, &["IOSchedulingPriority", "LimitNOFILE", "Nice", "OOMScoreAdjust", "TasksMax"]),
    (RUN, Not(TYPED), &[
        "AmbientCapabilities", "CPUSchedulingPolicy", "CapabilityBoundingSet", "Delegate", "IOSchedulingClass",
        "IPAddressAllow", "IPAddressDeny", "KillSignal", "LimitCORE", "LimitMEMLOCK", "LimitNPROC",
        "LogsDirectoryMode", "MountFlags", "RestartKillSignal", "RestartSec", "RestrictAddressFamilies", "RestrictNamespaces",
        "RuntimeDirectoryMode", "RuntimeMaxSec", "StateDirectoryMode", "SystemCallErrorNumber", "SystemCallFilter", "TimeoutSec",
        "TimeoutStartSec", "TimeoutStopSec", "UMask", "WatchdogSec",
    ]),
    (&["Install"], Not("read by `systemctl enable`, not by the manager"), &[
        "Alias", "Also", "DefaultInstance", "RequiredBy", "UpheldBy", "WantedBy",
    ]),
];
