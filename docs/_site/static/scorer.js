// What ranks the results of a search: pages, which explain, before names of the API, which are many.
var Scorer = {
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 0, 1: -5, 2: -5}, objPrioDefault: -5,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
