"""AT WHAT PRICE: price books, their versions, and rating. Pure: no input or output."""
