-- The agent's database, as numbered migrations: each block runs once, in order, in a transaction that
-- also sets PRAGMA user_version. Only ever add (tables, columns with defaults, indexes): after a
-- self-update that fails its health check the old agent opens this database again.

-- migration: 1
CREATE TABLE about (
    only_row     INTEGER PRIMARY KEY CHECK (only_row = 1),
    store_id     TEXT NOT NULL,
    manifest_seq INTEGER NOT NULL DEFAULT 0,
    created_at   TEXT NOT NULL
) STRICT;

-- The greatest revision that was received of each job.
CREATE TABLE inbox (
    job_id      TEXT PRIMARY KEY,
    revision    INTEGER NOT NULL,
    attempt     INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    received_at TEXT NOT NULL
) STRICT;

-- One row an attempt of a job. `place` is the order of arrival.
CREATE TABLE journal (
    place      INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id     TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    revision   INTEGER NOT NULL,
    component  TEXT,
    command    TEXT,
    state      TEXT NOT NULL,
    tries      INTEGER NOT NULL DEFAULT 0,
    touched    INTEGER NOT NULL DEFAULT 0,
    asked      TEXT,
    image      TEXT,
    told       TEXT,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    UNIQUE (job_id, attempt)
) STRICT;
CREATE INDEX journal_by_state ON journal (state);

-- Statuses until the office's ack. AUTOINCREMENT: a seq is never given twice, even when the row with
-- the greatest one is deleted.
CREATE TABLE outbox (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id TEXT NOT NULL UNIQUE,
    job_id     TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    step       TEXT NOT NULL,
    thin       INTEGER NOT NULL,
    final      INTEGER NOT NULL,
    body       TEXT NOT NULL
) STRICT;
CREATE INDEX outbox_by_job ON outbox (job_id, attempt, step);

-- migration: 2
-- Samples until the broker has them, in blocks: one row for what came in some seconds.
CREATE TABLE telemetry (
    place   INTEGER PRIMARY KEY AUTOINCREMENT,
    samples INTEGER NOT NULL,
    body    TEXT NOT NULL
) STRICT;

-- migration: 3
-- `release` is how far a job of several targets is (JSON of edge_agent.store.release.Release); `restarts` counts
-- starts of the agent that found the attempt where the one before had left it.
ALTER TABLE journal ADD COLUMN release TEXT;
ALTER TABLE journal ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0;

-- migration: 4
-- `selection` names what the trust chain selected for the attempt: a file of DATA/trust/selected.
ALTER TABLE journal ADD COLUMN selection TEXT;
