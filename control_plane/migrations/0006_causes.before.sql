-- Why a truck waits, by codes, beside the English sentence: whoever reads it does so in his language.

-- owner: jobs ---------------------------------------------------------------------------------
ALTER TABLE jobs ADD COLUMN causes jsonb;
ALTER TABLE job_history ADD COLUMN causes jsonb;
