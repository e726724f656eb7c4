-- What is directed to each truck, the image repository that it is chosen from, and what trucks prove.

-- owner: director -----------------------------------------------------------------------------
-- The one image repository, as it was last verified; `trusted` is a truck's store (shared.trust), so that
-- the office refuses what trucks would.
CREATE TABLE image_repository (
    only_one     boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    trusted      bytea NOT NULL,
    root         bigint NOT NULL,
    snapshot     bigint NOT NULL,
    "timestamp"  bigint NOT NULL,
    good_until   timestamptz NOT NULL,
    taken_by     text NOT NULL,
    taken_at     timestamptz NOT NULL DEFAULT now()
);

-- Metadata by its served name. Only timestamp.json is ever replaced.
CREATE TABLE image_metadata (
    name     text PRIMARY KEY,
    sha256   text NOT NULL,
    raw      bytea NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT now()
);

-- What the newest metadata signs. The bytes lie in the firmware store by their hash; `release` is the
-- document itself where the target is a release.
CREATE TABLE image_targets (
    path     text PRIMARY KEY,
    sha256   text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    length   bigint NOT NULL,
    release  bytea
);

-- One row a truck. `version` is the newest that was given out for it, and only grows; store_id, seq,
-- past_stores and said_at are what its newest good manifest said; gateway_key signs its manifests.
CREATE TABLE director_vehicles (
    device_id       text PRIMARY KEY REFERENCES devices ON DELETE CASCADE,
    revision        bigint NOT NULL DEFAULT 0,
    primary_serial  text,
    gateway_key     text,
    version         bigint NOT NULL DEFAULT 0,
    store_id        text NOT NULL DEFAULT '',
    seq             bigint NOT NULL DEFAULT -1,
    past_stores     text[] NOT NULL DEFAULT '{}',
    said_at         timestamptz,
    manifest_sha256 text,
    manifest_at     timestamptz
);

-- The ECUs of a truck as an operator registered them. counter: the highest that it reported;
-- settled_sha256: what it held when the office last had no reason to ask, from settled_at on.
CREATE TABLE ecus (
    device_id      text NOT NULL REFERENCES director_vehicles ON DELETE CASCADE,
    serial         text NOT NULL,
    kind           text NOT NULL,
    hardware       text NOT NULL,
    public_key     text,
    counter        bigint NOT NULL DEFAULT 0,
    settled_sha256 text,
    settled_at     timestamptz,
    PRIMARY KEY (device_id, serial)
);

-- What each ECU held, one row for each change; unregistered ones too. believed: the report counts.
CREATE TABLE ecu_reports (
    report_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device_id       text NOT NULL REFERENCES director_vehicles ON DELETE CASCADE,
    serial          text NOT NULL,
    kind            text NOT NULL,
    hardware        text NOT NULL,
    believed        boolean NOT NULL,
    filename        text,
    length          bigint,
    sha256          text,
    release_counter bigint,
    said_at         timestamptz NOT NULL,
    first_seen_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ecu_reports_of_ecu ON ecu_reports (device_id, serial, report_id DESC);

-- What a truck shall have: by an operator's word, or by a job (then it counts as long as the job says so).
CREATE TABLE director_selections (
    device_id    text PRIMARY KEY REFERENCES director_vehicles ON DELETE CASCADE,
    release_path text,
    job_id       text,
    chosen_by    text NOT NULL,
    chosen_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What was signed for a truck: the newest few versions, so that a verification under way finds its files.
CREATE TABLE director_metadata (
    device_id    text NOT NULL REFERENCES director_vehicles ON DELETE CASCADE,
    version      bigint NOT NULL,
    fingerprint  text NOT NULL,
    release_path text,
    why          text NOT NULL DEFAULT '',
    targets      bytea NOT NULL,
    snapshot     bytea NOT NULL,
    "timestamp"  bytea NOT NULL,
    renew_at     timestamptz NOT NULL,
    signed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (device_id, version)
);

-- An alarm is one row from its first sight until it is acknowledged; after that it may come again.
-- about: tells alarms of one ECU apart (the attack that it reports), else empty. It refers to the truck's row
-- here, which whoever raises an alarm has locked: a reference to devices would lock that row after it.
CREATE TABLE director_alarms (
    alarm_id        text PRIMARY KEY,
    device_id       text NOT NULL REFERENCES director_vehicles ON DELETE CASCADE,
    alarm           text NOT NULL,
    serial          text NOT NULL DEFAULT '',
    about           text NOT NULL DEFAULT '',
    detail          text NOT NULL,
    count           bigint NOT NULL DEFAULT 1,
    first_seen_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    acknowledged_at timestamptz,
    acknowledged_by text
);
CREATE UNIQUE INDEX director_alarms_open ON director_alarms (device_id, alarm, serial, about)
    WHERE acknowledged_at IS NULL;
CREATE INDEX director_alarms_newest ON director_alarms (first_seen_at DESC, alarm_id DESC);
