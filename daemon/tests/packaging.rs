//! The units that start the daemons.

#[test]
fn every_line_stands_once() {
    for unit in [
        include_str!("../../packaging/systemd/muster-agent.service"),
        include_str!("../../packaging/systemd/muster-scheduler.service"),
    ] {
        let lines: Vec<&str> = unit.lines().filter(|line| !line.is_empty()).collect();
        for (at, line) in lines.iter().enumerate() {
            assert!(!lines[..at].contains(line), "{line} stands twice");
        }
        assert!(lines.contains(&"RestartPreventExitStatus=64"), "what makes no sense is not tried again");
    }
}
