#!/bin/sh
# Reads secrets from files and passes them to a program as variables. They are in no image, no compose
# file, no `docker inspect` and no command line.
set -eu

secret() { tr -d '\n' <"$1"; }

# Unset empty variables, which are open in .env; programs would take them as values.
for name in AWS_ENDPOINT_URL_S3 AWS_REGION AWS_PROFILE; do
  eval "value=\${$name-unset}"
  [ -n "$value" ] || unset "$name"
done

if [ -n "${PREFECT_AUTH_FILE:-}" ]; then
  auth=$(secret "$PREFECT_AUTH_FILE")
  export PREFECT_API_AUTH_STRING="$auth" PREFECT_SERVER_API_AUTH_STRING="$auth"
fi
if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
  at="$(secret "$POSTGRES_PASSWORD_FILE")@${POSTGRES_HOST:-postgres}:5432"
  export PREFECT_API_DATABASE_CONNECTION_URL="postgresql+asyncpg://prefect:$at/prefect"
fi
if [ -n "${REDIS_HOST:-}" ]; then
  # With more than one Prefect server, events and locks go through Redis, and services that must run
  # only once have a separate container.
  password=$(secret "$REDIS_PASSWORD_FILE")
  export PREFECT_MESSAGING_BROKER=prefect_redis.messaging
  export PREFECT_MESSAGING_CACHE=prefect_redis.messaging
  export PREFECT_SERVER_EVENTS_CAUSAL_ORDERING=prefect_redis.ordering
  export PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect_redis.lease_storage
  export PREFECT_REDIS_MESSAGING_HOST="$REDIS_HOST" PREFECT_REDIS_MESSAGING_PASSWORD="$password"
  export PREFECT_SERVER_DOCKET_URL="redis://:$password@$REDIS_HOST:6379/0"
  case "$*" in "prefect server start"*) set -- "$@" --no-services ;; esac
fi
exec "$@"
