"""`python -m data.inspect`: what TFRecord files hold, without a schema."""
