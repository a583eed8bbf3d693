"""The push relay: carries sealed FIDO URLs and opens none."""
