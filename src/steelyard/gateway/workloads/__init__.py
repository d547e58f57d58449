"""What can be asked: each workload says what is asked, what it can cost at most, what it used."""
