-- The first schema. The owner room of each table is named above it; others call its service.

-- owner: devices ------------------------------------------------------------------------------
CREATE TABLE devices (
    device_id     text PRIMARY KEY CHECK (device_id ~ '^[A-Za-z0-9_-]{1,64}$'),
    name          text NOT NULL DEFAULT '',
    site          text NOT NULL DEFAULT '',
    version       bigint NOT NULL DEFAULT 1,
    online        boolean NOT NULL DEFAULT false,
    last_seen_at  timestamptz,
    agent_version text,
    features      text[] NOT NULL DEFAULT '{}',
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE components (
    device_id         text NOT NULL REFERENCES devices ON DELETE CASCADE,
    component         text NOT NULL,
    kind              text NOT NULL,
    hardware          text NOT NULL,
    installed_version text,
    installed_sha256  text,
    -- What the truck says of itself where that differs from what is registered; else NULL.
    reported_kind     text,
    reported_hardware text,
    in_bootloader     boolean NOT NULL DEFAULT false,
    reported_at       timestamptz,
    PRIMARY KEY (device_id, component)
);
CREATE INDEX devices_of_site ON devices (site, device_id);

-- The centre numbers a device's stores at first sight, so that a lost agent database never makes
-- its new statuses stale. manifest_seq is the newest manifest that was taken from a store; -1: none.
CREATE TABLE device_stores (
    device_id     text NOT NULL REFERENCES devices ON DELETE CASCADE,
    store_id      text NOT NULL,
    store_no      integer NOT NULL,
    manifest_seq  bigint NOT NULL DEFAULT -1,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (device_id, store_id),
    UNIQUE (device_id, store_no)
);

-- owner: access -------------------------------------------------------------------------------
-- Secrets are random and 256 bits long, so a plain SHA-256 of them is as good as a slow hash.
CREATE TABLE api_tokens (
    token_id     text PRIMARY KEY,
    name         text NOT NULL,
    role         text NOT NULL CHECK (role IN ('admin')),
    token_sha256 bytea NOT NULL UNIQUE,
    created_at   timestamptz NOT NULL DEFAULT now(),
    revoked_at   timestamptz
);
CREATE UNIQUE INDEX api_tokens_live ON api_tokens (name) WHERE revoked_at IS NULL;

CREATE TABLE enrolment_tokens (
    token_sha256 bytea PRIMARY KEY,
    device_id    text NOT NULL REFERENCES devices ON DELETE CASCADE,
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    used_at      timestamptz
);
CREATE INDEX enrolment_tokens_device ON enrolment_tokens (device_id);

CREATE TABLE device_credentials (
    device_id    text PRIMARY KEY REFERENCES devices ON DELETE CASCADE,
    token_sha256 bytea NOT NULL UNIQUE,
    mqtt_bcrypt  text NOT NULL,
    issued_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE idempotency_keys (
    principal      text NOT NULL,
    key            text NOT NULL,
    request_sha256 bytea NOT NULL,
    status         integer NOT NULL,
    headers        jsonb NOT NULL DEFAULT '{}',
    body           jsonb NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (principal, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

-- owner: firmware -----------------------------------------------------------------------------
CREATE TABLE firmwares (
    firmware_id     text PRIMARY KEY,
    kind            text NOT NULL,
    version         text NOT NULL,
    hardware        text[] NOT NULL CHECK (cardinality(hardware) > 0),
    release_counter bigint NOT NULL,
    length          bigint NOT NULL CHECK (length > 0),
    sha256          text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    document        bytea NOT NULL,
    state           text NOT NULL CHECK (state IN ('published', 'withdrawn')),
    notes           text NOT NULL DEFAULT '',
    created_by      text NOT NULL,
    published_at    timestamptz NOT NULL DEFAULT now(),
    withdrawn_at    timestamptz,
    withdrawn_why   text,
    UNIQUE (kind, version)
);
CREATE INDEX firmwares_sha256 ON firmwares (sha256);

-- owner: jobs ---------------------------------------------------------------------------------
CREATE TABLE jobs (
    job_id          text PRIMARY KEY,
    device_id       text NOT NULL REFERENCES devices,
    state           text NOT NULL CHECK (state IN ('scheduled', 'ready', 'dispatched', 'downloading',
                        'flashing', 'silent', 'cancelling', 'done', 'error', 'cancelled', 'abandoned')),
    -- version: grows with every change of the row (ETag, optimistic locking, order of events).
    version         bigint NOT NULL DEFAULT 1,
    attempt         integer NOT NULL DEFAULT 1,
    -- revision: grows with everything that the centre tells the truck about the job.
    revision        integer NOT NULL DEFAULT 1,
    -- command_kind: what the newest revision says; commanded_revision: the newest one that the
    -- dispatcher has taken over. A sweep finds the jobs where it lags, so no event can be missed.
    command_kind       text NOT NULL DEFAULT 'install' CHECK (command_kind IN ('install', 'cancel', 'url')),
    commanded_revision integer NOT NULL DEFAULT 0,
    scheduled_at    timestamptz NOT NULL,
    step            text,
    progress        integer,
    reason          text,
    error           jsonb,
    -- The newest status that counted: a later one must be greater (see jobs/merge.py).
    merged_attempt  integer NOT NULL DEFAULT 0,
    merged_store_no integer NOT NULL DEFAULT 0,
    merged_seq      bigint NOT NULL DEFAULT 0,
    merged_message_id text NOT NULL DEFAULT '',
    created_by      text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    dispatched_at   timestamptz,
    finished_at     timestamptz
);
CREATE UNIQUE INDEX one_live_job_per_device ON jobs (device_id)
    WHERE state NOT IN ('done', 'error', 'cancelled', 'abandoned');
CREATE INDEX jobs_due ON jobs (scheduled_at) WHERE state = 'scheduled';
CREATE INDEX jobs_uncommanded ON jobs (job_id) WHERE commanded_revision < revision
    AND state NOT IN ('scheduled', 'done', 'error', 'cancelled', 'abandoned');
CREATE INDEX jobs_newest ON jobs (created_at DESC, job_id DESC);
CREATE INDEX jobs_of_device ON jobs (device_id, created_at DESC, job_id DESC);

CREATE TABLE job_targets (
    job_id            text NOT NULL REFERENCES jobs ON DELETE CASCADE,
    component         text NOT NULL,
    firmware_id       text NOT NULL REFERENCES firmwares,
    kind              text NOT NULL,
    version           text NOT NULL,
    sha256            text NOT NULL,
    length            bigint NOT NULL,
    read_back_version text,
    read_back_sha256  text,
    PRIMARY KEY (job_id, component)
);

-- Every change and every status, also those that came too late to count; by the database's clock.
CREATE TABLE job_history (
    history_id  bigint GENERATED ALWAYS AS IDENTITY,
    job_id      text NOT NULL,
    attempt     integer NOT NULL,
    version     bigint NOT NULL,
    from_state  text,
    to_state    text,
    cause       text NOT NULL,
    applied     boolean NOT NULL DEFAULT true,
    status      text,
    step        text,
    progress    integer,
    reason      text,
    error       jsonb,
    message_id  text,
    store_no    integer,
    seq         bigint,
    device_at   timestamptz,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (received_at, history_id)
) PARTITION BY RANGE (received_at);
CREATE TABLE job_history_default PARTITION OF job_history DEFAULT;
CREATE INDEX job_history_of_job ON job_history (job_id, history_id);

CREATE TABLE status_dedup (
    job_id     text NOT NULL,
    message_id text NOT NULL,
    status     text NOT NULL,
    PRIMARY KEY (job_id, message_id, status)
) PARTITION BY HASH (job_id);
CREATE TABLE status_dedup_0 PARTITION OF status_dedup FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE status_dedup_1 PARTITION OF status_dedup FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE status_dedup_2 PARTITION OF status_dedup FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE status_dedup_3 PARTITION OF status_dedup FOR VALUES WITH (MODULUS 4, REMAINDER 3);

-- owner: outbox -------------------------------------------------------------------------------
CREATE TABLE event_outbox (
    outbox_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id    text NOT NULL UNIQUE,
    job_id      text NOT NULL,
    job_version bigint NOT NULL,
    topic       text NOT NULL,
    key         text NOT NULL,
    event_type  text NOT NULL,
    payload     bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    tries       integer NOT NULL DEFAULT 0,
    next_try_at timestamptz NOT NULL DEFAULT now(),
    last_error  text,
    sent_at     timestamptz,
    dead_at     timestamptz
);
CREATE INDEX event_outbox_pending ON event_outbox (outbox_id) WHERE sent_at IS NULL;
CREATE INDEX event_outbox_pending_of_job ON event_outbox (job_id, job_version, outbox_id) WHERE sent_at IS NULL;
CREATE INDEX event_outbox_sent ON event_outbox (sent_at) WHERE sent_at IS NOT NULL;

-- A slot of a role is held by one process until its lease expires.
CREATE TABLE leases (
    name       text NOT NULL,
    slot       integer NOT NULL,
    holder     text NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (name, slot)
);

-- owner: dispatcher ---------------------------------------------------------------------------
-- One row a live job: the newest revision only. answered_at: the truck has shown that it has it.
CREATE TABLE commands (
    job_id       text PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    device_id    text NOT NULL REFERENCES devices,
    command_id   text NOT NULL UNIQUE,
    attempt      integer NOT NULL,
    revision     integer NOT NULL,
    kind         text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    tries        integer NOT NULL DEFAULT 0,
    next_try_at  timestamptz NOT NULL DEFAULT now(),
    last_sent_at timestamptz,
    answered_at  timestamptz
);
CREATE INDEX commands_due ON commands (next_try_at) WHERE answered_at IS NULL;
CREATE INDEX commands_of_device ON commands (device_id);

-- owner: bus (the in-process one) ---------------------------------------------------------------
-- One row for each group that still has to handle an event; deleted when it has.
CREATE TABLE bus_deliveries (
    delivery_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer_group text NOT NULL,
    topic       text NOT NULL,
    key         text NOT NULL,
    event_id    text NOT NULL,
    payload     bytea NOT NULL,
    tries       integer NOT NULL DEFAULT 0,
    next_try_at timestamptz NOT NULL DEFAULT now(),
    last_error  text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (consumer_group, topic, event_id)
);
CREATE INDEX bus_deliveries_next ON bus_deliveries (consumer_group, delivery_id);
CREATE INDEX bus_deliveries_of_key ON bus_deliveries (consumer_group, topic, key, delivery_id);

-- owner: dead_letters -------------------------------------------------------------------------
CREATE TABLE dead_letters (
    dead_letter_id text PRIMARY KEY,
    source         text NOT NULL,
    device_id      text,
    job_id         text,
    message_id     text,
    reason         text NOT NULL,
    raw            bytea NOT NULL,
    reference      jsonb NOT NULL DEFAULT '{}',
    created_at     timestamptz NOT NULL DEFAULT now(),
    resolved_at    timestamptz,
    resolution     text CHECK (resolution IN ('replayed', 'dropped')),
    resolved_by    text
);
CREATE INDEX dead_letters_newest ON dead_letters (created_at DESC, dead_letter_id DESC);
-- A truck that repeats a bad message fills no table.
CREATE UNIQUE INDEX dead_letters_of_message ON dead_letters (source, device_id, message_id);
CREATE INDEX dead_letters_open_of_device ON dead_letters (device_id) WHERE resolved_at IS NULL;
