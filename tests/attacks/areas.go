package attacks

import "slices"

// all is every case there is: one line for each area.
func all() []Attack {
	return slices.Concat(
		manifestAttacks,
		signatureAttacks,
		configAttacks,
		environmentAttacks,
		limitAttacks,
		mqttAttacks,
		recordAttacks,
		tableAttacks,
		tpmAttacks,
		metadataAttacks,
		statementAttacks,
		deltaAttacks,
		indexAttacks,
		releaseAttacks,
		clockAttacks,
		raceAttacks,
		diskAttacks,
		sourceAttacks,
	)
}
