"""What follows from descriptions: overviews, summaries, comparisons. Pure functions, no output."""
