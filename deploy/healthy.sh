#!/bin/bash
# Health check of a container: `healthy.sh ADDRESS…`. Each address must answer: http://… with 200,
# tcp://host:port by accepting a connection. In bash only: it runs every few seconds in each
# container, and starting Python would cost fifty times as much. Docker limits its time.
set -u

check() {
  local rest=${1#*://} at path=/ version status
  at=${rest%%/*}
  [[ $rest == */* ]] && path=/${rest#*/}
  exec 3<>"/dev/tcp/${at%:*}/${at##*:}" || return 1
  if [[ $1 == http://* ]]; then
    printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$path" "$at" >&3
    read -r version status _ <&3 || return 1
    [[ $version == HTTP/* && $status == 200 ]] || { echo "$1: $status" && return 1; }
  fi
  exec 3>&-
}

for address in "$@"; do
  check "$address" || exit 1
done
