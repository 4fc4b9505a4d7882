# Shared by the scripts of tools/: where things are, progress, and failures that say what to do next.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
started=$SECONDS

say() { printf '\033[1m==> %s\033[0m [%ds]\n' "$*" $((SECONDS - started)) >&2; }

# die WHAT NEXT: one line what failed, one line what to do.
die() {
  printf 'error: %s\n  what to do: %s\n' "$1" "$2" >&2
  exit 1
}

# run_logged NAME COMMAND…: runs quietly, keeps the output in build/log/NAME.log, shows its end when the command fails.
run_logged() {
  local name=$1
  shift
  mkdir -p "$root/build/log"
  local log=$root/build/log/$name.log
  if ! "$@" >"$log" 2>&1; then
    tail -n 25 "$log" >&2
    die "'$*' failed" "read $log, mend the cause and run the same command again: finished steps are not repeated"
  fi
}
