-- Jobs that bring a whole signed release.

-- owner: jobs ---------------------------------------------------------------------------------
-- The release's path in the image repository; NULL: a job of one published firmware, which names it.
ALTER TABLE jobs ADD COLUMN release_path text;
ALTER TABLE job_targets ALTER COLUMN firmware_id DROP NOT NULL;

-- owner: director -----------------------------------------------------------------------------
-- What an ECU with a verifying bootloader checks itself, as it was signed with its image.
ALTER TABLE image_targets ADD COLUMN document bytea;

-- What a truck's newest hello said of the metadata that it trusts, by "director/timestamp" and the like.
ALTER TABLE director_vehicles ADD COLUMN metadata_versions jsonb NOT NULL DEFAULT '{}';

-- Every release that was ever taken in: one that is not signed any more is withdrawn, not unknown.
CREATE TABLE image_releases (
    path         text PRIMARY KEY,
    taken_at     timestamptz NOT NULL DEFAULT now(),
    withdrawn_at timestamptz
);
INSERT INTO image_releases (path) SELECT path FROM image_targets WHERE release IS NOT NULL;
