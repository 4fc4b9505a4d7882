#!/usr/bin/env bash
# usage: run_oracle.sh PYTHON SCRIPT TEXT_TOOL
set -euo pipefail
if [ ! -x "$1" ]; then
  echo "error: $1 does not exist; tools/install_dependencies --tests makes it, QUICKSILVER_PYTHON names another" >&2
  exit 1
fi
exec "$@"
