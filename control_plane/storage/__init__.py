"""Where firmware images lie, and how trucks fetch them without an account there."""
