"""What people installed at trucks, with no order of the office, as the trucks report it."""
