//! fleet's functional tests, made anew for Muster: the same steps, and the same outcome unless the test says why not.
//!
//! | fleet's test | here |
//! | --- | --- |
//! | `TestClientHelpFlag` | `client::test_client_help_flag` |
//! | `TestClientVersionFlag` | `client::test_client_version_flag` |
//! | `TestClientVersionHelpOutput` | `client::test_client_version_help_output` |
//! | `TestFleetctlWithEnv` | `client::test_fleetctl_with_env` |
//! | `TestKnownHostsVerification` | `client::test_known_hosts_verification` |
//! | `TestUnitRunnable` | `units::test_unit_runnable` |
//! | `TestUnitSubmit` | `units::test_unit_submit` |
//! | `TestUnitLoad` | `units::test_unit_load` |
//! | `TestUnitStart` | `units::test_unit_start` |
//! | `TestUnitRestart` | `units::test_unit_restart` |
//! | `TestUnitSubmitReplace` | `units::test_unit_submit_replace` |
//! | `TestUnitLoadReplace` | `units::test_unit_load_replace` |
//! | `TestUnitStartReplace` | `units::test_unit_start_replace` |
//! | `TestReplaceSerialization`, which fleet gave up | `units::test_replace_serialization` |
//! | `TestUnitSSHActions` | `units::test_unit_ssh_actions` |
//! | `TestUnitCat` | `units::test_unit_cat` |
//! | `TestUnitStatus` | `units::test_unit_status` |
//! | `TestListUnitFilesOrder` | `units::test_list_unit_files_order` |
//! | `TestSystemdUnitFlow` | `units::test_systemd_unit_flow` |
//! | `TestInstallUnit` | `units::test_install_unit` |
//! | `TestTunnelScheduleBatchUnits` | `scheduling::test_schedule_batch_units`: there is no `--tunnel`, for which `ssh -L` will do |
//! | `TestScheduleMachineOf` | `scheduling::test_schedule_machine_of` |
//! | `TestScheduleConflicts` | `scheduling::test_schedule_conflicts` |
//! | `TestScheduleOneWayConflict` | `scheduling::test_schedule_one_way_conflict` |
//! | `TestScheduleMultipleConflicts` | `scheduling::test_schedule_multiple_conflicts` |
//! | `TestScheduleReplace` | `scheduling::test_schedule_replace` |
//! | `TestScheduleCircularReplace` | `scheduling::test_schedule_circular_replace` |
//! | `TestScheduleConditionMachineID` | `scheduling::test_schedule_condition_machine_id` |
//! | `TestScheduleGlobalUnits` | `scheduling::test_schedule_global_units` |
//! | `TestScheduleGlobalConflicts` | `scheduling::test_schedule_global_conflicts` |
//! | `TestTemplatesWithSpecifiersInMetadata` | `scheduling::test_templates_with_specifiers_in_metadata` |
//! | `TestDynamicClusterNewMemberUnitMigration` | `machines::test_dynamic_cluster_new_member_unit_migration` |
//! | `TestDynamicClusterMemberReboot` | `machines::test_dynamic_cluster_member_reboot` |
//! | `TestNodeShutdown` | `machines::test_node_shutdown` |
//! | `TestDetectMachineId` | `machines::test_detect_machine_id` |
//! | `TestSingleNodeConnectivityLoss` | `machines::test_single_node_connectivity_loss` |
//! | `TestReconfigureServer` | `machines::test_reconfigure_server`: a restart in place of SIGHUP, which reloads nothing here |
//! | `TestShutdown` | `machines::test_shutdown` |
//! | `TestShutdownVsMonitor` | `machines::test_shutdown_vs_monitor` |
//! | `TestMachinesList` | `api::test_machines_list` |
//! | `TestMachinesListBadNextPageToken` | `api::test_machines_list_bad_next_page_token` |
//! | `TestMachinesPatchAddModify` | `api::test_machines_patch_add_modify` |
//! | `TestMachinesPatchDelete` | `api::test_machines_patch_delete` |
//! | `TestMachinesPatchBad` | `api::test_machines_patch_bad` |

mod api;
mod client;
mod cluster;
mod machines;
mod scheduling;
#[path = "../muster/ssh.rs"]
mod ssh;
#[path = "../muster/support.rs"]
mod support;
mod units;
