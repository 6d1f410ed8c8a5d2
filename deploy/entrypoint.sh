#!/bin/sh
# Gives a program its secrets from files, as the variables that it reads. They are in no image, no
# compose file, no `docker inspect` and no command line.
set -eu

secret() { tr -d '\n' <"$1"; }

# An empty variable is one that .env leaves open; programs take it for a value.
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
  # More than one Prefect server: events and locks go through Redis, and the services that must not
  # run in each of them have a container of their own.
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
