"""Networks written without this library in mind, by framework, as users have them: nothing here imports it."""
