"""``specbreaker report``: one HTML file that shows what a recording holds, for a person."""
