"""What this machine is: cards, driver, memory, versions."""
