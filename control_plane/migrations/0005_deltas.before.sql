-- Deltas beside images, and what people at trucks installed with no order of the office.

-- owner: firmware -----------------------------------------------------------------------------
-- A way from one image to another, both named by their hashes. Its bytes lie in the firmware store under
-- delta_sha256; it was applied before it got its row, and what came out was the image.
CREATE TABLE firmware_deltas (
    base_sha256  text NOT NULL CHECK (base_sha256 ~ '^[0-9a-f]{64}$'),
    sha256       text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    delta_sha256 text NOT NULL CHECK (delta_sha256 ~ '^[0-9a-f]{64}$'),
    length       bigint NOT NULL CHECK (length > 0),
    image_length bigint NOT NULL CHECK (image_length > length),
    format       text NOT NULL,
    taken_by     text NOT NULL,
    taken_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sha256, base_sha256)
);
CREATE INDEX firmware_deltas_file ON firmware_deltas (delta_sha256);

-- owner: local_installs -----------------------------------------------------------------------
-- Jobs that began at a truck (`quarry agent install-file`): one row each, what its winning status says. The
-- truck chose the id, so it names a row together with the truck only.
CREATE TABLE local_installs (
    device_id       text NOT NULL REFERENCES devices ON DELETE CASCADE,
    job_id          text NOT NULL,
    state           text NOT NULL CHECK (state IN ('downloading', 'flashing', 'done', 'error', 'cancelled')),
    attempt         integer NOT NULL,
    step            text NOT NULL,
    progress        integer,
    reason          text,
    causes          jsonb NOT NULL,
    error           jsonb,
    wanted          jsonb NOT NULL,
    read_back       jsonb NOT NULL,
    said_at         timestamptz NOT NULL,
    merged_store_no integer NOT NULL,
    merged_seq      bigint NOT NULL,
    merged_message_id text NOT NULL,
    first_seen_at   timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (device_id, job_id)
);
CREATE INDEX local_installs_newest ON local_installs (first_seen_at DESC, job_id DESC);
CREATE INDEX local_installs_of_device ON local_installs (device_id, first_seen_at DESC, job_id DESC);
