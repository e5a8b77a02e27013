# Kills what is left of exclusive units when their time after the end of the lease is over. All times are in hundredths
# of a second since boot.
now() {
    read -r up _ </proc/uptime
    now=${up%.*}${up#*.}
}

# Kills all processes of a control group and those below it.
kill_all() {
    [ ! -e "$1/cgroup.kill" ] || echo 1 >"$1/cgroup.kill"
    pids=$(cat "$1/cgroup.procs")
    [ -z "$pids" ] || { found=yes; kill -KILL $pids; }
    for below in "$1"/*/; do
        [ ! -e "$below/cgroup.procs" ] || kill_all "${below%/}"
    done
}

# The lease may have ended before its moment.
now
read -r end <'@DIR@/end' && [ "$end" -lt "$now" ] || end=$now
while :; do
    now
    next=
    # What was adopted is where it was started, until its next start: there are links to that.
    for slice in @SLICES@ '@DIR@/adopted/'*/*.slice; do
        [ -d "$slice" ] || continue
        stop=${slice##*-}
        due=$((end + ${stop%.slice} * 100))
        if [ $now -lt $due ]; then
            left=$((due - now))
        else
            found=
            kill_all "$slice" 2>/dev/null
            # Again, for at least a second: systemd starts an ExecStopPost= when it sees that a process has died.
            [ $now -lt $((due + 100)) ] || { [ "$found" ] && [ $now -lt $((due + 3000)) ]; } || continue
            left=10
        fi
        [ "$next" ] && [ $next -le $left ] || next=$left
    done
    [ "$next" ] || exit 0
    sleep "$((next / 100)).$((next / 10 % 10))$((next % 10))"
done
