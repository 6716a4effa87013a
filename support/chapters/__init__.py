"""What two chapters share, or a chapter and its tests: nothing in the package needs it."""
