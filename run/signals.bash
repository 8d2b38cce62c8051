# How scripts run programs; sourced, not run.
#
#   run_program COMMAND...
#
# Waits for COMMAND, a program or a function. SIGTERM, SIGHUP and SIGINT to this script go to COMMAND and to what it has started;
# the script ends after it, with status 128 + the signal's number, or 75 if COMMAND left that. They end with this script too if it
# is killed.

run_program() {
    local program='' signalled=0 status=0 started=()
    ! command -v setpriv >/dev/null || started=(setpriv --pdeathsig KILL --)  # a function uses it itself, as launch does
    trap 'pass_on TERM 15' TERM
    trap 'pass_on HUP 1' HUP
    trap 'pass_on INT 2' INT
    set -m  # gives it a process group, and SIGINT, which programs in the background of a script would ignore
    if [ "$(type -t "$1")" = function ]; then "$@" </dev/null & else "${started[@]}" "$@" </dev/null & fi
    program=$!
    set +m
    [ $signalled = 0 ] || kill -TERM -- "-$program" 2>/dev/null || true  # the signal came before the program
    while kill -0 "$program" 2>/dev/null; do wait "$program" 2>/dev/null || true; done  # a signal ends a wait
    wait "$program" 2>/dev/null || status=$?
    trap - TERM HUP INT
    [ $signalled != 0 ] || return $status
    kill -KILL -- "-$program" 2>/dev/null || true
    [ $status = 75 ] || status=$((128 + signalled))
    exit $status
}

pass_on() {  # pass_on NAME NUMBER: a signal, to the program of run_program
    signalled=$2
    [ -z "$program" ] || kill -s "$1" -- "-$program" 2>/dev/null || true
}
