"""What an app will do, from its values alone, and what differs between two plans."""
