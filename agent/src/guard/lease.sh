# The lease of this machine: lasts until the moment that stands in a file, and ends with status 1. The agent moves that
# moment on. With an argument: whether more than so much of it is left. All is in hundredths of a second since boot.
while read -r up _ </proc/uptime && [ -e '@DIR@/end' ] && read -r end <'@DIR@/end'; do
    left=$((end - ${up%.*}${up#*.}))
    [ $left -gt "${1:-0}" ] || break
    [ -z "$1" ] || exit 0
    sleep "$((left / 100)).$((left / 10 % 10))$((left % 10))"
done
# PID 1 ends what was bound to this, and this script's other processes before that. Where it hangs, they are all that is left.
[ "$1" ] || /bin/sh '@DIR@/fence.sh' &
exit 1
