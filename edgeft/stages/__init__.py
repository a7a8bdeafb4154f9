"""One module per stage; each has one public function `run(recipe, inputs, out, log) -> metrics`."""
