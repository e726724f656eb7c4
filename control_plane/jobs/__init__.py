"""The only room that changes a job."""
