"""What an experiment claims, varies, measures and draws."""
